"""The owner of the forced aligner: sessions hand in texts, and get the places of their words.

A request that comes too late for its final, fails, or finds too many before it costs nobody more than the word times.
When the aligner dies it is started again, with growing pauses. Texts of recordings are placed a few at a time, with
patience: nobody waits at a screen. Knows no sessions beyond a callback; built by the
services.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from qwen3_asr_server.domain import Word
from qwen3_asr_server.engines._base import Aligner
from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.messages import Align, Aligned
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.alarm import Clock
from qwen3_asr_server.runtime.backoff import Backoff

_log = logging.getLogger(__name__)

MAX_REQUESTS: Final = 128
"""Requests of live sessions at once; the aligner batches them, and more would all come too late."""
TIMEOUT_S: Final = 5.0
"""Longest request. No final waits for so long."""
RECORDED_REQUESTS: Final = 4
"""Requests of recordings that the aligner is given at once; more wait."""
RECORDED_TIMEOUT_S: Final = 120.0
"""Longest request of a recording from its turn on, with the wait for an aligner that is started again."""

Deliver = Callable[[Aligned], None]


class AlignerDesk:
    """Run an aligner for all sessions.

    Args:
        aligner: not started yet.
        metrics: where requests are counted and timed.
        clock: seconds, monotonic.
    """

    def __init__(self, aligner: Aligner, metrics: Metrics, clock: Clock) -> None:
        self._aligner = aligner
        self._metrics = metrics
        self._clock = clock
        self._running: dict[tuple[Deliver, int], asyncio.Task[None]] = {}
        self._live = 0
        self._recorded_turns = asyncio.Semaphore(RECORDED_REQUESTS)
        self._restart: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._open = False

    @property
    def model(self) -> str:
        """Which aligner it is."""
        return self._aligner.model

    async def start(self) -> None:
        """Load the aligner; does nothing where it is loaded, or being started again.

        Raises:
            EngineError: with a reason a user can act upon.
        """
        if self._open:
            return
        await self._aligner.start()
        self._backoff.runs(self._clock())
        self._open = True

    async def stop(self) -> None:
        """Give up what runs, which is answered without words, and release everything.

        Safe to call twice, or without `start`.
        """
        self._open = False
        tasks = {*self._running.values(), *([self._restart] if self._restart else [])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._restart = None
        await self._aligner.stop()

    def submit(self, job: Align, deliver: Deliver, *, recorded: bool = False) -> None:
        """Place words; `deliver` is told, unless a later job of the same piece replaces this one or the desk stops.

        Args:
            job: the text, and where it was spoken.
            deliver: takes the answer.
            recorded: it is of a recording, whose owner bounds how many there are.
        """
        key = (deliver, job.piece)
        earlier = self._running.pop(key, None)
        if earlier is not None:
            earlier.cancel()
        full = self._restart is not None or self._live >= MAX_REQUESTS
        if not self._open or (full and not recorded):
            self._metrics.alignments.labels("refused").inc()
            deliver(Aligned(job.piece, job.upto, ()))
            return
        task = asyncio.create_task(self._place(job, deliver, recorded), name="align")
        self._running[key] = task
        self._live += not recorded
        task.add_done_callback(lambda done: self._over(job, deliver, done, recorded))

    def forget(self, deliver: Deliver) -> None:
        """Give up what runs for a session."""
        for key in [key for key in self._running if key[0] == deliver]:
            self._running.pop(key).cancel()

    async def _place(self, job: Align, deliver: Deliver, recorded: bool) -> None:
        began = self._clock()
        words: Sequence[Word] = ()
        try:
            if recorded:
                words = await self._align_in_turn(job)
            else:
                async with asyncio.timeout(TIMEOUT_S):
                    words = await self._align(job)
        except TimeoutError:
            result = "timeout"
        except EngineError as error:
            result = "failed"
            _log.warning("words could not be placed: %s", error.message)
        except Exception:  # noqa: BLE001 - the boundary to the aligner
            result = "failed"
            _log.exception("words could not be placed")
        else:
            result = "placed" if words else "unsupported"
            self._metrics.align_seconds.observe(self._clock() - began)
        self._metrics.alignments.labels(result).inc()
        self._revive()
        deliver(Aligned(job.piece, job.upto, words))

    async def _align(self, job: Align) -> Sequence[Word]:
        return await self._aligner.align(job.audio, job.text, job.language)

    async def _align_in_turn(self, job: Align) -> Sequence[Word]:
        """Place the words of a recording; once more, if the aligner dies meanwhile."""
        async with self._recorded_turns, asyncio.timeout(RECORDED_TIMEOUT_S):
            await self._alive()
            try:
                return await self._align(job)
            except EngineError:
                if not self._aligner.dead:
                    raise
            self._revive()
            await self._alive()
            return await self._align(job)

    async def _alive(self) -> None:
        """Wait while the aligner is started again."""
        if self._restart is not None:
            await asyncio.wait({self._restart})

    def _revive(self) -> None:
        if self._aligner.dead and self._restart is None and self._open:
            self._restart = asyncio.create_task(self._start_again(), name="restart the aligner")

    def _over(self, job: Align, deliver: Deliver, task: asyncio.Task[None], recorded: bool) -> None:
        self._live -= not recorded
        key = (deliver, job.piece)
        if self._running.get(key) is task:
            del self._running[key]
            if task.cancelled():  # by `stop`: a recording waits for its words without a deadline
                deliver(Aligned(job.piece, job.upto, ()))

    async def _start_again(self) -> None:
        _log.error("the aligner has died and is started again")
        while True:
            await asyncio.sleep(self._backoff.failed(self._clock()))
            try:
                await self._aligner.stop()
                await self._aligner.start()
            except Exception:  # noqa: BLE001 - a task of its own: nobody else would hear of it
                _log.exception("the aligner could not be started again")
                continue
            self._backoff.runs(self._clock())
            self._restart = None
            return
