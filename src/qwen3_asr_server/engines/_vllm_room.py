"""Who may use vLLM's KV cache: admission by tokens.

The cache of prefixes has a cliff, not a slope: once what open streams come back to does not fit any more, each step
throws out what the next one needs, and all of them compute everything anew. So a stream is charged with its context,
audio and text from its first step to its close, and

    charged tokens    ≤ 60 % of the cache     the rest is what steps leave behind
    retention         ≥ 3 intervals           how long the cache holds what is written now

What does not fit: partials and candidates are left out, a final waits. A stream that is charged already always gets
its final, so that finals end and room comes free; and where nobody is charged there is room for everybody. Few finals
wait at once: whoever waits holds one of the scheduler's turns, which the finals that free the room need too.

Recordings may fill a smaller share, and write only as long as retention suffers it. They wait in a queue of their own,
which nobody else notices and which moves only while no final of a live session waits. One of them is always let in
then: a recording comes to its end.

Knows no vLLM and no audio. Streams (`_vllm_stream`) ask it before each step; the engine builds it.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.errors import EngineError, EngineTimeout

SHARE: Final = 0.6
RECORDED_SHARE: Final = 0.3
"""What live streams and recordings together may fill for another piece of a recording to be let in."""
INTERVALS: Final = 3.0
LONGEST_RETENTION_S: Final = 3600.0
MOST_WAITING: Final = 8
"""Finals; one more, and the oldest is let in though it does not fit: vLLM then makes room by forgetting."""
NEWCOMER_TOKENS: Final = 500
"""What a piece of 28 s may come to without context."""
_RATE_S: Final = 5.0
"""Time over which the rate of writing is averaged."""
_Waiting = tuple[object, int, asyncio.Future[None]]


class KvRoom:
    """The tokens that a KV cache has room for.

    Args:
        tokens: size of the cache; None if nobody knows, then everything fits.
        interval_s: longest interval between two steps of a stream.
        wait_s: longest wait of a final; for pieces of recordings whoever asks keeps the deadline.
        written: gives how many tokens were ever computed, and so put into the cache.
        clock: seconds, monotonic.

    Attributes:
        skipped: partials and candidates left out so far.
        waited: finals that had to wait so far.
    """

    def __init__(
        self,
        tokens: int | None = None,
        interval_s: float = 2.0,
        wait_s: float = 60.0,
        written: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._retention_limit_s = INTERVALS * interval_s
        self._wait_s = wait_s
        self._clock = clock
        self._charged: dict[object, int] = {}
        self._waiting: deque[_Waiting] = deque()
        self._recorded_waiting: deque[_Waiting] = deque()
        self._recorded: set[object] = set()
        self._written = written
        self._seen = written()
        self._seen_at = clock()
        self._recent = 0.0
        self.skipped = 0
        self.waited = 0

    @property
    def charged(self) -> int:
        """Tokens that open streams are charged with."""
        return sum(self._charged.values())

    @property
    def retention_s(self) -> float:
        """How long the cache would hold what is written now, at the present rate; an hour at the most."""
        rate = self._recently_written() / _RATE_S
        if self._tokens is None or rate * LONGEST_RETENTION_S <= self._tokens:
            return LONGEST_RETENTION_S
        return self._tokens / rate

    @property
    def full(self) -> bool:
        """Whether a newcomer would find no room now."""
        live = sum(tokens for stream, tokens in self._charged.items() if stream not in self._recorded)
        fits = self._tokens is None or live + NEWCOMER_TOKENS <= SHARE * self._tokens
        room = fits and self.retention_s >= self._retention_limit_s
        return live > 0 and (bool(self._waiting) or not room)

    async def enter(self, stream: object, tokens: int, kind: StepKind, *, recorded: bool = False) -> bool:
        """Charge a stream with what its next step needs in all.

        Args:
            stream: anything that names it.
            tokens: context, audio and text, those of its earlier steps included.
            kind: a FINAL waits for room.
            recorded: the stream is a recording's; its steps are FINAL.

        Returns:
            Whether the step may be done; always for a FINAL.

        Raises:
            EngineTimeout: a final has waited for too long.
            EngineError: the engine was stopped meanwhile.
        """
        if recorded:
            if self._recorded_waiting or not self._recorded_may_enter(tokens):
                await self._wait(self._recorded_waiting, stream, tokens, None)
            self._recorded.add(stream)
        elif kind is StepKind.FINAL:
            if stream not in self._charged and (self._waiting or not self._fits(stream, tokens)):
                await self._wait(self._waiting, stream, tokens, self._wait_s)
        elif self.retention_s < self._retention_limit_s or self._waiting or not self._fits(stream, tokens):
            self.skipped += 1
            return False
        self._charged[stream] = tokens
        return True

    def leave(self, stream: object) -> None:
        """Charge a stream with nothing any more. Harmless for one that never entered."""
        self._recorded.discard(stream)
        if self._charged.pop(stream, None) is not None:
            self._let_in()

    def close(self, error: EngineError) -> None:
        """Fail the finals that wait."""
        for _, _, place in (*self._waiting, *self._recorded_waiting):
            if not place.done():
                place.set_exception(error)

    def flat(self) -> dict[str, int | float]:
        """Return the numbers by name: levels as `float`, counts as `int`."""
        return {
            "kv_tokens": float(self._tokens or 0),
            "kv_tokens_charged": float(self.charged),
            "kv_retention_s": round(self.retention_s, 1),
            "kv_partials_skipped": self.skipped,
            "kv_finals_waited": self.waited,
        }

    async def _wait(self, queue: "deque[_Waiting]", stream: object, tokens: int, wait_s: float | None) -> None:
        self.waited += 1
        entry = (stream, tokens, asyncio.get_running_loop().create_future())
        queue.append(entry)
        self._let_in()
        try:
            async with asyncio.timeout(wait_s):
                await entry[2]
        except TimeoutError:
            raise EngineTimeout("The recogniser had no room for this utterance.") from None
        except asyncio.CancelledError:
            self.leave(stream)  # let in at the very moment it gave up
            raise
        finally:
            if entry in queue:
                queue.remove(entry)
                self._let_in()

    def _let_in(self) -> None:
        """Let finals in, in the order they came, as far as they fit."""
        while self._waiting and (len(self._waiting) > MOST_WAITING or self._first_may_enter):
            stream, tokens, place = self._waiting.popleft()
            if not place.done():
                self._charged[stream] = tokens
                place.set_result(None)
        while self._recorded_waiting and self._recorded_may_enter(self._recorded_waiting[0][1]):
            stream, tokens, place = self._recorded_waiting.popleft()
            if not place.done():
                self._charged[stream] = tokens
                self._recorded.add(stream)
                place.set_result(None)

    @property
    def _first_may_enter(self) -> bool:
        stream, tokens, place = self._waiting[0]
        return place.done() or self._fits(stream, tokens)

    def _recorded_may_enter(self, tokens: int) -> bool:
        if self._waiting or self._tokens is None or not self._recorded:
            return not self._waiting
        fits = self.charged + tokens <= RECORDED_SHARE * self._tokens
        return fits and self.retention_s >= self._retention_limit_s

    def _fits(self, stream: object, tokens: int) -> bool:
        others = self.charged - self._charged.get(stream, 0)
        return self._tokens is None or not others or others + tokens <= SHARE * self._tokens

    def _recently_written(self) -> float:
        """Return the tokens written lately, each the less the longer ago."""
        total, now = self._written(), self._clock()
        self._recent = self._recent * math.exp((self._seen_at - now) / _RATE_S) + total - self._seen
        self._seen, self._seen_at = total, now
        return self._recent
