"""The audio of a session on its way through the VAD, and the commands that wait for their place in it.

A *marker* is a command at the sample where it came. A hard one ends the track: the frame it falls into is
filled up with silence, and after it the detector starts afresh with a new epoch. A soft one waits only
until no whole frame is left before it.

It knows no items, engines or clocks; `machine.py` is its only caller.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qwen3_asr_server.audio.timeline import Timeline
from qwen3_asr_server.domain import FRAME_SAMPLES, Samples, TurnDetection
from qwen3_asr_server.messages import Clear, Commit, Configure, Finish, Scored, ScoreFrames
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.segmenter import Mark, Segmenter


@dataclass(frozen=True, slots=True)
class Marker:
    """A command and its place."""

    position: int
    command: Commit | Clear | Finish | Configure
    hard: bool


class Track:
    """Audio, its scored frontier, and what waits behind it."""

    def __init__(self, turn: TurnDetection | None, options: SessionOptions) -> None:
        self._options = options
        self._timeline = Timeline()
        self._markers: deque[Marker] = deque()
        self._scoring = 0
        self.epoch = 0
        self.origin = 0
        """Where the present track began."""
        self.segmenter = self._segmenter(turn)

    @property
    def received(self) -> int:
        """One past the last sample the client sent."""
        return self._timeline.end

    @property
    def unscored(self) -> int:
        """Samples received and not judged yet."""
        return max(0, self.received - self.segmenter.frontier)

    @property
    def last_hard(self) -> int:
        """The sample after which nothing has been committed, cleared or finished."""
        return next((marker.position for marker in reversed(self._markers) if marker.hard), self.origin)

    @property
    def ends_at(self) -> int | None:
        """Where the present track will end, once the client has said so."""
        return next((marker.position for marker in self._markers if marker.hard), None)

    @property
    def waiting_commands(self) -> int:
        """How many commands wait for their place."""
        return len(self._markers)

    def drop_waiting(self) -> list[Commit | Clear | Finish | Configure]:
        """Take out the commands that wait, in order: nothing will reach them any more."""
        commands = [marker.command for marker in self._markers]
        self._markers.clear()
        return commands

    def append(self, samples: Samples) -> None:
        """Add audio, float32 [n], at the end."""
        self._timeline.append(samples)

    def read(self, start: int, upto: int, limit: int | None) -> Samples:
        """Return float32 [upto - start], read-only; silence past `limit` and past what was received."""
        if limit is None or limit >= upto:
            return self._timeline.read(start, upto)
        heard = self._timeline.read(start, max(start, limit))
        return np.pad(heard, (0, upto - start - len(heard)))

    def trim(self, before: int) -> None:
        """Forget audio that neither a piece before `before` nor the detector needs."""
        self._timeline.trim(min(before, self.segmenter.keep_from, self.segmenter.frontier, self.received))

    def wait(self, command: Commit | Clear | Finish | Configure, *, hard: bool) -> None:
        """Let a command wait here until everything before it has been judged."""
        self._markers.append(Marker(self.received, command, hard))

    def reached(self) -> Marker | None:
        """Take the next marker whose place has been reached."""
        if not self._markers:
            return None
        marker = self._markers[0]
        missing = marker.position - self.segmenter.frontier
        if self._scoring or missing >= (1 if marker.hard else FRAME_SAMPLES):
            return None
        return self._markers.popleft()

    def next_frames(self) -> ScoreFrames | None:
        """Return the next frames to score; None while others are out or none is complete."""
        if self._scoring:
            return None
        begin = self.segmenter.frontier
        stop = self._markers[0].position if self._markers else self.received
        count = min((stop - begin) // FRAME_SAMPLES, self._options.score_frames)
        if count > 0:
            audio = self._timeline.read(begin, begin + count * FRAME_SAMPLES)
        elif self._markers and self._markers[0].hard and stop > begin:
            audio, count = self.read(begin, begin + FRAME_SAMPLES, stop), 1
        else:
            return None
        self._scoring = count
        return ScoreFrames(self.epoch, audio.reshape(count, FRAME_SAMPLES))

    def scored(self, outcome: Scored) -> Iterator[Mark] | None:
        """Take in probabilities; None if they belong to a track that is over.

        Frames are judged as the marks are drawn, so that each mark is obeyed before the next frame is seen.
        """
        if outcome.epoch != self.epoch or not self._scoring:
            return None
        self._scoring = 0
        return (mark for probability in outcome.probabilities.tolist() for mark in self.segmenter.push(probability))

    def restart(self, turn: TurnDetection | None, at: int) -> None:
        """Begin a new track at sample `at`."""
        self.epoch += 1
        self._scoring = 0
        self.origin = at
        self.segmenter = self._segmenter(turn)

    def _segmenter(self, turn: TurnDetection | None) -> Segmenter:
        return Segmenter(turn, self._options, self.origin, self._timeline.quietest)
