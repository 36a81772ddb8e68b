"""A server that runs elsewhere, as the command `transcribe --url` uses it: files go to its `POST /api/transcribe`.

Also where the address is that of the realtime WebSocket. The door for recordings takes every format of audio, gives
every form of text and tells progress; the realtime protocol has no word times and no channels, takes raw audio only,
and would have the file decoded here. Both give the same text. Knows nothing of engines.
"""

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from qwen3_asr_server.commands._address import TRANSCRIBE, Address
from qwen3_asr_server.commands._jobs import Wishes
from qwen3_asr_server.commands._screen import Bar
from qwen3_asr_server.commands._transcriber import Abilities, Unserved, Written
from qwen3_asr_server.errors import MediaError, Overloaded

STATUS: Final = "/api/status"
_TRUNCATED: Final = "audio_truncated"
PATIENCE_S: Final = 600.0
"""How long a server may be full before a file is given up."""

# A model may have to be loaded before the first event, and a server that is busy tells progress every second.
_TIMEOUTS: Final = httpx.Timeout(60, connect=10, read=600)
# A connection for each file: one that was kept may be closed by the server just as the next file goes out.
_LIMITS: Final = httpx.Limits(max_keepalive_connections=0)


class There:
    """Has files transcribed by a server.

    Args:
        address: where it is.
        key: its API key; empty where it has none.
    """

    def __init__(self, address: Address, key: str) -> None:
        self._base = address.base
        self._asked_model = address.model
        self._model = ""
        self._key = key
        self._client: httpx.AsyncClient | None = None
        self._abilities: Abilities | None = None
        self.starting = f"Asking {address.base}"

    async def abilities(self) -> Abilities:
        """Return what the server can do; so a wrong address or key is told before files are sent."""
        if not self._key.isascii() or not self._key.isprintable():
            raise Unserved("An API key has only letters, digits and signs of ASCII.")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.AsyncClient(base_url=self._base, headers=headers, timeout=_TIMEOUTS, limits=_LIMITS)
        with _told(self._base):
            answer = await self._client.get(STATUS, timeout=30)
        if answer.status_code == 401:
            raise self._unauthorized()
        try:
            status = answer.json()
            engine = status["engine"]
            known = {name.lower() for name in status["available_models"]}
            found = Abilities(engine["name"], frozenset(engine["languages"]), engine["context"], engine["word_times"])
        except (ValueError, KeyError, TypeError):
            raise Unserved(f"{self._base} is no such server: {STATUS} gave {answer.status_code}.") from None
        self._model = self._asked_model if self._asked_model.lower() in known else ""
        self._abilities = found
        return found

    async def start(self) -> None:
        """Do nothing: it runs."""

    async def stop(self) -> None:
        """Hang up."""
        if self._client is not None:
            await self._client.aclose()

    async def written(self, source: Path, wishes: Wishes, bar: Bar) -> Written:
        """Return the transcript of a file; wait while the server is full.

        Raises:
            MediaError: it cannot be read here.
            Unserved: the server does not do it, and says why.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._asked(source, wishes, bar)
            except Overloaded as full:
                if time.monotonic() + full.retry_after_s > until:
                    raise
                bar.show(0, None, "the server is full")
                await asyncio.sleep(full.retry_after_s)

    async def _asked(self, source: Path, wishes: Wishes, bar: Bar) -> Written:
        assert self._client is not None
        with _opened(source, bar) as file, _told(self._base):
            # No name: the server does not want it, and it may not be fit for a header.
            form: dict[str, Any] = {"data": self._fields(wishes), "files": {"file": ("recording", file)}}
            async with self._client.stream("POST", TRANSCRIBE, **form) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise self._failure(answer)
                async for name, data in _events(answer):
                    match name:
                        case "progress":
                            bar.heard(data["done_seconds"], data["total_seconds"])
                        case "result":
                            return Written(_rendered(data, wishes), _TRUNCATED in data)
                        case "error":
                            raise Unserved(data["message"])
        raise Unserved("The server broke off.")

    def _fields(self, wishes: Wishes) -> dict[str, str]:
        assert self._abilities is not None
        return {
            "stream": "true",
            "format": wishes.form,
            "language": wishes.language or "auto",
            "model": wishes.model or self._model,
            "context": wishes.context,
            "return_timestamps": str(wishes.words and self._abilities.word_times).lower(),
            "split_channels": str(wishes.channels).lower(),
        }

    def _failure(self, answer: httpx.Response) -> Unserved | Overloaded:
        if answer.status_code == 401:
            return self._unauthorized()
        try:
            message = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            return Unserved(f"{self._base} answered {answer.status_code}.")
        after = answer.headers.get("retry-after", "")
        return Overloaded(message, retry_after_s=float(after)) if after.isdigit() else Unserved(message)

    def _unauthorized(self) -> Unserved:
        given = "takes another key than this one" if self._key else "wants an API key"
        return Unserved(f"{self._base} {given}: --api-key, or DASHSCOPE_API_KEY.")


class _Sent(io.FileIO):
    """A file that shows how much of it was read."""

    def __init__(self, path: Path, bar: Bar) -> None:
        super().__init__(path, "rb")
        self._bar = bar
        self._bytes = path.stat().st_size
        self._read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        chunk = super().read(-1 if size is None else size) or b""
        self._read += len(chunk)
        self._bar.show(self._read, self._bytes, f"sent {self._read / 1e6:.0f}/{self._bytes / 1e6:.0f} MB")
        return chunk


def _opened(source: Path, bar: Bar) -> _Sent:
    if not source.is_file():  # opening a named pipe would wait for its writer
        raise MediaError("This is no file.")
    try:
        return _Sent(source, bar)
    except OSError as problem:
        raise MediaError(f"The file cannot be opened: {problem.strerror}.") from None


@contextmanager
def _told(base: str) -> Iterator[None]:
    """Say in a sentence what is wrong with a connection."""
    try:
        yield
    except httpx.ConnectTimeout:
        raise Unserved(f"{base} cannot be reached: it does not answer.") from None
    except httpx.ConnectError as problem:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(problem)) or "nobody listens"
        raise Unserved(f"{base} cannot be reached: {reason}.") from None
    except httpx.TimeoutException:
        raise Unserved(f"{base} has gone silent.") from None
    except (httpx.HTTPError, httpx.InvalidURL):
        raise Unserved(f"The connection to {base} broke off.") from None
    except (ValueError, KeyError, TypeError):  # out of what it sent
        raise Unserved(f"{base} answered what nobody can read.") from None
    except OSError as problem:  # from the file: those of the connection are httpx's
        raise MediaError(f"The file cannot be read: {problem.strerror}.") from None


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Yield name and data of each server-sent event; lines end with a line feed only, as texts may hold the others."""
    name, rest = "", b""
    async for chunk in answer.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.partition(b": ")
            if field == b"event":
                name = value.decode()
            elif field == b"data":
                yield name, json.loads(value)


def _rendered(result: dict[str, Any], wishes: Wishes) -> str:
    """Return a result as an engine here would have it written."""
    if wishes.form not in ("json", "verbose_json"):
        return str(result["content"])
    if wishes.form == "json":
        channels = [{"channel": entry["channel_id"], "text": entry["text"]} for entry in result.get("channels", ())]
        said = {name: result[name] for name in ("text", _TRUNCATED) if name in result}
        result = said | ({"channels": channels} if wishes.channels else {})
    return json.dumps(result, ensure_ascii=False) + "\n"
