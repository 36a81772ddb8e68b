"""Score the frames of all sessions together, in one thread.

    session ── submit(frames) ──▶ inbox ──▶ turns: up to 4 frames of every request, a model call for each ──▶ session

A request joins at the next turn and leaves with its last frame, so a long one delays nobody by more than a turn.
What is done for each request is done once a turn, not once a frame: a packet of 100 ms is one turn. Knows one event
loop and one model; which session a stream belongs to and what probabilities mean is the caller's business.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final
from uuid import uuid4

import numpy as np

from qwen3_asr_server.domain import FRAME_SAMPLES
from qwen3_asr_server.errors import AsrServerError, EngineNotReady, InternalError
from qwen3_asr_server.vad._base import Floats, VadModel

MAX_FRAMES: Final = 64
"""Most frames in one request: 2 s of audio."""

TURN_FRAMES: Final = 4
"""Most frames of one request in a turn: 128 ms of audio."""

Deliver = Callable[["Floats | AsrServerError"], None]
"""Takes the probabilities, or why there are none. Called in the event loop."""

_JOIN_TIMEOUT_S: Final = 5.0
logger = logging.getLogger(__name__)


class VadBatcher:
    """One model shared by all streams of an event loop.

    Args:
        model: called from the batcher's thread alone.
        max_rows: most streams in one model call.
        gather_s: how long the idle thread waits for company once a request comes, in seconds. It does not wait
            when every open stream has asked already.
        on_batch: told the rows and seconds of every model call, in the batcher's thread.
    """

    def __init__(
        self,
        model: VadModel,
        *,
        max_rows: int = 64,
        gather_s: float = 0.005,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._model = model
        self._fresh_state = model.new_state()
        self._max_rows = max_rows
        self._gather_s = gather_s
        self._on_batch = on_batch
        self._inbox: SimpleQueue[_Request | None] = SimpleQueue()
        self._waiting: set[_Request] = set()
        self._streams = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def streams(self) -> int:
        """Streams that are open."""
        return self._streams

    def start(self) -> None:
        """Start the thread. Called once, in the event loop that will ask for scores."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, args=(self._loop,), name="vad", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fail what waits and end the thread, which takes one model call at most. Safe to call twice."""
        if self._thread is None:
            return
        for request in list(self._waiting):
            request.answer(EngineNotReady("Voice activity detection has been stopped."))
        self._inbox.put(None)
        self._thread.join(_JOIN_TIMEOUT_S)
        self._thread = None

    def open(self) -> "VadStream":
        """Return a stream that has heard nothing."""
        self._streams += 1
        return VadStream(self)

    def _submit(self, request: "_Request") -> None:
        if self._thread is None:
            raise EngineNotReady("Voice activity detection is not running.")
        self._waiting.add(request)
        self._inbox.put(request)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run rounds until told to stop. The thread's main function."""
        active: list[_Request] = []
        while self._collect(active):
            self._advance(active, loop)

    def _collect(self, active: "list[_Request]") -> bool:
        """Add the requests that have come; sleep while there are none. Return False when told to stop."""
        if not active:
            request = self._inbox.get()
            if request is None:
                return False
            active.append(request)
            if 1 + self._inbox.qsize() < min(self._streams, self._max_rows):
                time.sleep(self._gather_s)
        try:
            while True:
                request = self._inbox.get_nowait()
                if request is None:
                    return False
                active.append(request)
        except Empty:
            active[:] = [request for request in active if not request.given_up]
            return True

    def _advance(self, active: "list[_Request]", loop: asyncio.AbstractEventLoop) -> None:
        """Take a turn with every request and hand back those that are over."""
        for first in range(0, len(active), self._max_rows):
            self._turn(active[first : first + self._max_rows])
        finished = [request for request in active if request.over]
        active[:] = [request for request in active if not request.over]
        if finished:
            loop.call_soon_threadsafe(_deliver, finished)

    def _turn(self, requests: "Sequence[_Request]") -> None:
        """Score the next frames of each request; a fault fails them all."""
        try:
            self._score_next(sorted(requests, key=_Request.next_frames, reverse=True))
        except Exception:
            error_id = uuid4().hex
            logger.exception("voice activity detection failed", extra={"error_id": error_id, "rows": len(requests)})
            for request in requests:
                request.error = InternalError(f"Voice activity detection failed ({error_id}).")

    def _score_next(self, requests: "Sequence[_Request]") -> None:
        """Score the next frames of each request, the one with the most of them first."""
        counts = [request.next_frames() for request in requests]
        frames = np.empty((counts[0], len(requests), FRAME_SAMPLES), np.float32)
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            frames[:count, row] = request.frames[request.scored : request.scored + count]
        states = np.array([request.state for request in requests])
        probabilities = np.empty(frames.shape[:2], np.float32)
        rows = len(requests)
        for number, column in enumerate(frames):
            while counts[rows - 1] <= number:
                rows -= 1
            began = time.perf_counter()
            probabilities[number, :rows], states[:rows] = self._model.score(column[:rows], states[:rows])
            if self._on_batch is not None:
                self._on_batch(rows, time.perf_counter() - began)
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            request.take(probabilities[:count, row], states[row])


class VadStream:
    """The detector as one session sees it."""

    def __init__(self, batcher: VadBatcher) -> None:
        self._batcher = batcher
        self._state = batcher._fresh_state.copy()
        self._request: _Request | None = None
        self._open = True

    def submit(self, frames: Floats, deliver: Deliver) -> None:
        """Score consecutive frames; the answer is delivered later, from the event loop. There is no deadline here.

        The answer is the speech probabilities, float32 [n] in [0, 1]; or InternalError when the model failed, after
        which the stream starts afresh, as after `reset`; or EngineNotReady when the stream or the batcher was
        closed meanwhile.

        Args:
            frames: float32 [n, 512], n from 1 to 64, mono, 16 kHz, in [-1, 1]. Not to be changed meanwhile.
            deliver: called once. What it raises is logged, so that no other stream's answer is lost by it.

        Raises:
            EngineNotReady: the batcher does not run.
        """
        if frames.ndim != 2 or frames.shape[1] != FRAME_SAMPLES or not 1 <= len(frames) <= MAX_FRAMES:
            raise ValueError(f"frames must be [1 to {MAX_FRAMES}, {FRAME_SAMPLES}], not {list(frames.shape)}")
        if self._request is not None or not self._open:
            raise RuntimeError("one score at a time, and none after close")
        request = _Request(self, frames, self._state, deliver)
        self._batcher._submit(request)
        self._request = request

    async def score(self, frames: Floats) -> Floats:
        """Do the same for a caller that waits; to be cancelled is to start afresh.

        Raises:
            InternalError: the model failed.
            EngineNotReady: the batcher does not run, or was stopped meanwhile.
        """
        answer: asyncio.Future[Floats | AsrServerError] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Floats | AsrServerError) -> None:
            if not answer.cancelled():  # its task is told of that only afterwards
                answer.set_result(outcome)

        self.submit(frames, deliver)
        try:
            scored = await answer
        except asyncio.CancelledError:
            self.drop()
            raise
        if isinstance(scored, AsrServerError):
            raise scored
        return scored

    def drop(self) -> None:
        """Give up what was submitted, whose answer is not delivered any more, and start afresh."""
        if self._request is not None:
            self._request.given_up = True
            self._batcher._waiting.discard(self._request)
            self._request = None
        self.reset()

    def reset(self) -> None:
        """Forget what was heard: the next frame is the first. Has no effect on a score that is under way."""
        self._state = self._batcher._fresh_state.copy()

    def close(self) -> None:
        """Give the stream up; a score under way fails. Safe to call twice."""
        if self._open:
            self._open = False
            self._batcher._streams -= 1
            if self._request is not None:
                self._request.answer(EngineNotReady("Voice activity detection was closed for this session."))


@dataclass(slots=True, eq=False)
class _Request:
    """Frames on their way. The thread owns `scored`, `error` and the contents of both arrays until it is over.

    `given_up` is written by the loop and read by the thread, which drops the request at the next turn.
    """

    stream: VadStream
    frames: Floats
    state: Floats
    """The stream's state, replaced in place; a stream that resets meanwhile takes another array."""
    deliver: Deliver
    probabilities: Floats = field(init=False)
    scored: int = 0
    error: AsrServerError | None = None
    given_up: bool = False

    def __post_init__(self) -> None:
        self.probabilities = np.empty(len(self.frames), np.float32)

    @property
    def over(self) -> bool:
        return self.error is not None or self.scored == len(self.frames)

    def next_frames(self) -> int:
        """Return how many frames the next turn takes."""
        return min(len(self.frames) - self.scored, TURN_FRAMES)

    def take(self, probabilities: Floats, state: Floats) -> None:
        """Keep what a turn gave, in the thread."""
        self.probabilities[self.scored : self.scored + len(probabilities)] = probabilities
        self.state[...] = state
        self.scored += len(probabilities)

    def answer(self, outcome: Floats | AsrServerError) -> None:
        """Hand the outcome over, in the loop, unless it was given up or answered before."""
        if self.given_up:
            return
        self.given_up = True
        stream = self.stream
        stream._batcher._waiting.discard(self)
        stream._request = None
        if isinstance(outcome, AsrServerError):
            stream.reset()
        try:
            self.deliver(outcome)
        except Exception:
            logger.exception("what voice activity detection found could not be delivered")


def _deliver(finished: "Sequence[_Request]") -> None:
    for request in finished:
        request.answer(request.probabilities if request.error is None else request.error)
