"""Who may use which decoder process.

A decoder keeps the state of one utterance, so it is leased to a stream from its first step to its end. There
are fewer decoders than streams may want, so a lease can be taken back between two steps, and the loser replays
its audio later: for a partial or candidate only from a stream that has been idle for a while, for a final from
whoever has been idle longest. So a final waits for a running step at most, in order of arrival and before those of
recordings; the others never wait, they are told that there is no room. Called by the streams of `pocketsphinx.py`;
knows nothing about audio or text.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._pocketsphinx_process import DecoderProcess
from qwen3_asr_server.errors import EngineNotReady, EngineTimeout


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one decoder process, and who has it."""

    process: DecoderProcess
    holder: object | None = None
    lease: int = 0
    """Changes whenever the decoder no longer has the state that its holder left in it."""
    busy: bool = False
    """A step is running."""
    idle_since: float = 0.0


class DecoderPool:
    """A bounded number of decoder processes, started on demand and replaced when they die.

    Args:
        size: most processes.
        make_process: gives a process that has not been started.
        start_timeout_s: longest time for a process to load its model.
        wait_timeout_s: longest wait of a final for a decoder; for those of recordings whoever asks keeps the deadline.
        reclaim_after_s: a lease without a step for this long may be taken back for a partial or candidate.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        size: int,
        make_process: Callable[[], DecoderProcess],
        *,
        start_timeout_s: float,
        wait_timeout_s: float,
        reclaim_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = size
        self._make_process = make_process
        self._start_timeout_s = start_timeout_s
        self._wait_timeout_s = wait_timeout_s
        self._reclaim_after_s = reclaim_after_s
        self._clock = clock
        self._slots: list[Slot] = []
        self._waiting: list[tuple[bool, int, object, asyncio.Future[Slot]]] = []
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that are running."""
        return [slot.process.pid for slot in self._slots if slot.process.alive and slot.process.pid is not None]

    async def lend(self, holder: object, kind: StepKind, *, recorded: bool = False) -> Slot | None:
        """Lease a decoder for one step, or go on with the one the holder has; `done` must follow.

        Args:
            holder: the stream; the lease stays its own after the step.
            kind: a FINAL waits for a decoder, the others do not.
            recorded: a FINAL of a recording, which waits behind the others.

        Returns:
            A slot with a live process; None when there is no room for what does not wait.

        Raises:
            EngineNotReady: the pool is closed.
            EngineTimeout: no decoder became free in time, or a new one did not start in time.
            EngineCrashed: a new decoder could not be started.
        """
        self._require_open()
        self._serve()
        slot = self._claim(holder, 0.0 if kind is StepKind.FINAL else self._reclaim_after_s)
        if slot is None:
            if kind is not StepKind.FINAL:
                return None
            slot = await self._wait(holder, recorded=recorded)
        try:
            self._require_open()
            if not slot.process.alive:
                slot.process = self._make_process()
                slot.lease = next(self._numbers)
                await slot.process.start(self._start_timeout_s)
            self._require_open()
        except BaseException:
            self.give_back(holder)
            self.done(slot)
            raise
        return slot

    def done(self, slot: Slot) -> None:
        """Mark the end of a step: from now on the lease counts as idle."""
        slot.busy = False
        slot.idle_since = self._clock()
        self._serve()

    def give_back(self, holder: object) -> None:
        """End the holder's lease, if it has one."""
        for slot in self._slots:
            if slot.holder is holder:
                slot.holder = None
        self._serve()

    async def close(self) -> None:
        """End all processes and wait for their ends; whoever waits for a decoder is told."""
        self._closed = True
        for *_, future in self._waiting:
            if not future.done():
                future.set_exception(EngineNotReady("the engine was stopped"))
        self._waiting.clear()
        for slot in self._slots:
            slot.process.kill()
        async with asyncio.timeout(self._start_timeout_s):
            for slot in self._slots:
                await slot.process.ended()

    async def _wait(self, holder: object, *, recorded: bool) -> Slot:
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append((recorded, next(self._numbers), holder, future))
        self._waiting.sort(key=lambda entry: entry[:2])
        try:
            async with asyncio.timeout(None if recorded else self._wait_timeout_s):
                return await future
        except (TimeoutError, asyncio.CancelledError) as given_up:
            # A decoder may have been handed over in that very moment.
            if future.done() and not future.cancelled():
                self.give_back(holder)
                self.done(future.result())
            if isinstance(given_up, TimeoutError):
                raise EngineTimeout("no decoder became free in time") from None
            raise

    def _serve(self) -> None:
        """Hand decoders to the finals that wait, those of recordings last, in order of arrival."""
        while self._waiting:
            *_, holder, future = self._waiting[0]
            if not future.done():
                slot = self._claim(holder, 0.0)
                if slot is None:
                    return
                future.set_result(slot)
            self._waiting.pop(0)

    def _claim(self, holder: object, idle_s: float) -> Slot | None:
        """Make a slot the holder's and mark it busy: its own, a free, a new, or an idle one."""
        slot = next((slot for slot in self._slots if slot.holder is holder), None)
        if slot is None:
            slot = self._free_slot() or self._new_slot() or self._idle_slot(idle_s)
            if slot is None:
                return None
            slot.holder = holder
            slot.lease = next(self._numbers)
        slot.busy = True
        return slot

    def _free_slot(self) -> Slot | None:
        free = [slot for slot in self._slots if slot.holder is None and not slot.busy]
        return max(free, key=lambda slot: slot.process.alive, default=None)

    def _new_slot(self) -> Slot | None:
        if len(self._slots) >= self._size:
            return None
        slot = Slot(self._make_process())
        self._slots.append(slot)
        return slot

    def _idle_slot(self, idle_s: float) -> Slot | None:
        leased = [slot for slot in self._slots if slot.holder is not None and not slot.busy]
        oldest = min(leased, key=lambda slot: slot.idle_since, default=None)
        if oldest is None or self._clock() - oldest.idle_since < idle_s:
            return None
        return oldest

    def _require_open(self) -> None:
        if self._closed:
            raise EngineNotReady("the engine is not running")
