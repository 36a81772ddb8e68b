"""The real `VadBatcher` in virtual time: with its thread, or in turns that the event loop takes itself.

Private parts of the batcher are called here and nowhere else: its turns, batches, states and answers are what
is to be tested, only the moment of a turn is chosen.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from qwen3_asr_server.vad._base import VadModel
from qwen3_asr_server.vad._batcher import VadBatcher
from support.clock import VirtualLoop


class SteppedBatcher(VadBatcher):
    """Takes its turns on the event loop, each `wait()` seconds after there is something to do: no thread, no race.

    Args:
        model: the detector.
        wait: gives the seconds until the next turn.
    """

    def __init__(self, model: VadModel, wait: Callable[[], float], **options: Any) -> None:
        super().__init__(model, gather_s=0.0, **options)
        self._wait = wait
        self._active: list[Any] = []
        self._turn_is_due = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        assert not self._waiting

    def _submit(self, request: Any) -> None:
        self._waiting.add(request)
        self._inbox.put(request)
        self._plan()

    def _plan(self) -> None:
        if not self._turn_is_due and (self._active or not self._inbox.empty()):
            self._turn_is_due = True
            asyncio.get_running_loop().call_later(self._wait(), self._take_turn)

    def _take_turn(self) -> None:
        self._turn_is_due = False
        assert self._collect(self._active)
        self._advance(self._active, asyncio.get_running_loop())
        self._plan()


class HoldingBatcher(VadBatcher):
    """Works in its thread; while it does, virtual time stands still."""

    def _submit(self, request: Any) -> None:
        loop, deliver = asyncio.get_running_loop(), request.deliver
        assert isinstance(loop, VirtualLoop)

        def delivered(answer: Any) -> None:
            loop.threads_out -= 1
            deliver(answer)

        request.deliver = delivered
        super()._submit(request)
        loop.threads_out += 1
