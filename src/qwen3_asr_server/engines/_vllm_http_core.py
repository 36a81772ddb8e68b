"""The engine core of one stream of `vllm_http`: a seat at a server, and another one when that fails.

What failed is asked whether it is well. If it is, the request goes there once more, with all data, since its caches may
have lost some; if not, the stream moves to another server, which gets all data too. A stream loses nothing by that:
requests change nothing but caches. Knows servers, not streams or text; `vllm_http` makes one for each stream.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.engines._vllm_http_client import Client, Failed, NoAnswer, Refused, Unfit
from qwen3_asr_server.engines._vllm_http_servers import Fleet, Server
from qwen3_asr_server.engines._vllm_http_wire import Reply, Wire, read_reply
from qwen3_asr_server.engines._vllm_request import ENDINGS, Answer, Counters, Ending, Request, TokenIds, Verdict
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady, EngineTimeout

_log = logging.getLogger(__name__)

CHECKED_TOKENS: Final = 8
"""Tokens that a check may write after its draft. They are wasted where the draft is wrong, and a request saved where
it is right and little follows."""


@dataclass(slots=True)
class RemoteCounters(Counters):
    """What was done, and what travelled for it."""

    sent_bytes: int = 0
    sent_windows: int = 0
    """Audio items with data."""
    moved: int = 0
    """Times a stream went to another server because its own failed."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the cores of all streams have in common."""

    client: Client
    fleet: Fleet
    wire: Wire
    ends: frozenset[int]
    counters: RemoteCounters
    decode_timeout_s: float
    queue_timeout_s: float


class RemoteCore:
    """See `Core`.

    Args:
        shared: servers and what is known of them.
        only: stay with this one, whatever happens and whatever is known of it.
        session: whose stream it is, see `Fleet.choose`.
    """

    def __init__(self, shared: Shared, only: Server | None = None, session: int | None = None) -> None:
        self._shared = shared
        self._only = only
        self._session = session
        self._seat: Server | None = None
        self._left = False

    @property
    def can_verify(self) -> bool:
        """Yes: the route answers with the model's own choices for a prompt."""
        return True

    @property
    def counters(self) -> RemoteCounters:
        """Shared by all streams."""
        return self._shared.counters

    async def generate(self, request: Request) -> Answer:
        """Decode, see `Core.generate`."""
        answer = self._answer(await self._ask(request, request.after, request.max_tokens))
        self.counters.cut += answer.ending is Ending.LENGTH
        return answer

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        """Compare a draft with the model's own choices, see `Core.verify`."""
        self.counters.verified += 1
        first = len(request.before) + sum(window.tokens for window in request.windows) + len(request.after)
        bound = min(request.max_tokens, CHECKED_TOKENS)
        reply = await self._ask(request, request.after + draft, bound, check=True)
        answer = self._answer(reply)
        # The first place of a prompt has no row.
        found = reply.first_choices[first - 1 :]
        if len(found) != len(draft):
            raise EngineError("The recogniser could not check this text.")
        chances = tuple(chance for _, chance in found) if request.chances else ()
        for place, (token, (choice, _)) in enumerate(zip(draft, found, strict=True)):
            if choice != token:
                self.counters.corrected += 1
                return Verdict(place, None if choice in self._shared.ends else choice, None, chances[: place + 1])
        return Verdict(len(draft), None, answer, chances)

    def leave(self) -> None:
        """Give the seat back."""
        self._left = True
        if self._seat is not None:
            self._seat.leave()
            self._seat = None

    # Requests

    async def _ask(self, request: Request, after: TokenIds, max_tokens: int, check: bool = False) -> Reply:
        self.counters.requests += 1
        audio_s = sum(len(window.samples) for window in request.windows) / SAMPLE_RATE
        limit_s = self._shared.decode_timeout_s + self._shared.queue_timeout_s + audio_s / 2
        try:
            async with asyncio.timeout(limit_s):
                return await self._ask_until_answered(request, after, max_tokens, check)
        except TimeoutError:
            raise EngineTimeout("The recogniser took too long.") from None

    async def _ask_until_answered(self, request: Request, after: TokenIds, max_tokens: int, check: bool) -> Reply:
        retried: Server | None = None
        while True:
            server = self._take_seat(request)
            try:
                return await self._ask_once(server, request, after, max_tokens, check)
            except Unfit as problem:
                self._lose(server, str(problem))
            except Refused:
                raise EngineError("The recogniser could not decode this audio.") from None
            except (NoAnswer, Failed) as problem:
                if not await self._shared.client.is_well(server.url):
                    self._lose(server, str(problem) or "has died")
                elif server is retried:
                    raise EngineError("The recogniser could not decode this audio.") from None
                else:
                    retried = server
                    self.counters.resent += 1
                    request.delivered.clear()

    async def _ask_once(self, server: Server, request: Request, after: TokenIds, max_tokens: int, check: bool) -> Reply:
        body = self._shared.wire.body(request, after, max_tokens=max_tokens, check=check)
        self.counters.sent_bytes += len(body)
        self.counters.sent_windows += sum(window.key not in request.delivered for window in request.windows)
        answer = await self._shared.client.generate(server.url, body)
        try:
            reply = read_reply(answer)
        except ValueError:
            raise Unfit("answers otherwise than vLLM 0.32") from None
        request.delivered.update(window.key for window in request.windows)
        return reply

    def _take_seat(self, request: Request) -> Server:
        """Return the stream's server; another one if that is not up, which then knows nothing of the stream yet."""
        if self._left or self._shared.client.closed:
            raise EngineNotReady("the engine is not running")
        if self._only is not None:
            return self._only
        if self._seat is not None and self._seat.up:
            return self._seat
        found = self._shared.fleet.choose(self._session)
        if self._seat is not None:
            self.counters.moved += found is not None
            self._seat.leave()
            self._seat = None
            request.delivered.clear()
        if found is None:
            raise EngineCrashed("No recognition server answers.")
        found.take()
        self._seat = found
        return found

    def _lose(self, server: Server, reason: str) -> None:
        if self._only is not None:
            raise EngineCrashed(reason)
        if server.lost(reason):
            _log.warning("vLLM server lost", extra={"server": server.number, "url": server.url, "reason": reason})

    def _answer(self, reply: Reply) -> Answer:
        ids = reply.token_ids
        while ids and ids[-1] in self._shared.ends:
            ids = ids[:-1]
        ending = ENDINGS.get(reply.finish_reason or "")
        if ending is None:
            raise EngineError(f"The recogniser ended with {reply.finish_reason!r}.")
        answer = Answer(ids, ending, reply.prompt_tokens, reply.cached_tokens or 0, tuple(reply.chances[: len(ids)]))
        counters = self.counters
        counters.prompt_tokens += answer.prompt_tokens
        counters.cached_tokens += answer.cached_tokens
        counters.new_tokens += len(reply.token_ids)
        return answer
