"""HTTP to one or several `vllm serve`: a decode, and the question whether a server is well.

Sorts what can go wrong by what can be done about it. Uses no proxy of the environment: audio goes where `VLLM_URLS`
says and nowhere else. Knows no requests and no choice of servers; `_vllm_http_core` and `vllm_http` call it.
"""

import asyncio
import logging
from typing import Final

import httpx

_log = logging.getLogger(__name__)

GENERATE: Final = "/inference/v1/generate"
MAX_CONNECTIONS: Final = 128
"""In all: twice the steps that run at once."""
IDLE_S: Final = 4.0
"""Idle connections are closed after this; vLLM closes its end after 5 s."""

_UNFIT: Final = {
    401: "wants another key: VLLM_API_KEY is its --api-key",
    403: "keeps its token route closed: start it with --enable-scale-out",
    404: "has no token route: it must be vLLM 0.32, started with --enable-scale-out",
}


class NoAnswer(Exception):
    """Nothing came back: no connection, or one that broke."""


class Unfit(Exception):
    """It answers, but cannot serve us as it was started; the message says why, after its name."""


class Refused(Exception):
    """It did not take this request, and will not take it a second time."""


class Failed(Exception):
    """It took the request and came to grief; a server that is well may do better with all data."""


class Client:
    """Connections to servers.

    Args:
        key: their `--api-key`, or empty.
        connect_timeout_s: longest wait for a connection, and for the answer that all is well; a server that takes
            longer than that for a decode is asked whether it is.

    Attributes:
        closed: nothing can be asked any more.
    """

    def __init__(self, key: str, connect_timeout_s: float) -> None:
        self._well_s = connect_timeout_s
        self._asking: set[asyncio.Task[httpx.Response]] = set()
        self.closed = False
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=IDLE_S),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections; whoever waits for an answer is told that there is none."""
        self.closed = True
        for asking in self._asking:
            asking.cancel()
        await self._http.aclose()

    async def is_well(self, url: str) -> bool:
        """Ask a server whether its engine lives."""
        if self.closed:
            return False
        try:
            async with asyncio.timeout(self._well_s):
                answer = await self._http.get(f"{url}/health")
        except (TimeoutError, httpx.HTTPError):
            return False
        return answer.status_code == httpx.codes.OK

    async def generate(self, url: str, body: bytes) -> bytes:
        """Have a server decode. The caller bounds the time; a cancelled call is aborted at the server.

        Raises:
            NoAnswer, Unfit, Refused, Failed: as their names say.
        """
        asking = asyncio.create_task(self._post(url, body), name="ask vLLM")
        self._asking.add(asking)
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=self._well_s)
                if not asking.done() and not await self.is_well(url):
                    raise NoAnswer("answers no more")
            if asking.cancelled():
                raise NoAnswer("was asked no longer")
            answer = asking.result()
        except httpx.HTTPError as problem:
            raise NoAnswer("does not answer") from problem
        finally:
            self._asking.discard(asking)
            if asking.cancel():
                await asyncio.wait({asking})
        return content_of(answer)

    async def _post(self, url: str, body: bytes) -> httpx.Response:
        return await self._http.post(url + GENERATE, content=body, headers={"Content-Type": "application/json"})


def content_of(answer: httpx.Response) -> bytes:
    """Return the body of an answer to a decode.

    Raises:
        Unfit, Refused, Failed: as their names say.
    """
    status = answer.status_code
    if status == httpx.codes.OK:
        return answer.content
    if status in _UNFIT:
        raise Unfit(_UNFIT[status])
    if answer.is_client_error:
        _log.warning("vLLM refused a request: HTTP %d", status)
        raise Refused
    raise Failed
