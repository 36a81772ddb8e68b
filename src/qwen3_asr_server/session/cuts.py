"""Recorded audio cut into the pieces that a live session would decode.

    audio ──▶ frames_to_score ──▶ the detector ──▶ scored ──▶ pieces

The same track and segmenter as in a live session, without its items, partials and candidates: what is to come is on
disk, so that a piece is handed out once, when its end is known. Nothing depends on how the audio is portioned.
It knows no engines, texts or files; `runtime/offline.py` is its caller.
"""

from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.domain import Samples, TurnDetection
from qwen3_asr_server.messages import Finish, Scored, ScoreFrames
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.segmenter import ItemBegan, ItemEnded, Mark, Paused, PieceBegan, PieceEnded
from qwen3_asr_server.session.track import Track


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A piece of a recording: what an engine decodes at one go. Sample indices on the file's clock."""

    start: int
    """First sample of `audio`, lead-in included."""
    end: int
    """One past the last; `end - start` is a multiple of `GRID_SAMPLES`. May lie past the end of the file."""
    speech_start: int
    """First sample of speech, as far as the detector can tell."""
    speech_end: int
    """One past the last sample of speech."""
    audio: Samples
    """float32 [end - start], a copy; silence past the end of the file."""
    overlaps: bool = False
    """Its beginning was also the end of the piece before: the texts share words."""
    overlapped: bool = False
    """Its end is also the beginning of the next piece."""
    first: bool = False
    """There is none before it."""

    def without_audio(self) -> "Cut":
        """Return the same without what takes memory."""
        return replace(self, audio=np.empty(0, np.float32))


class PieceCutter:
    """Cut one channel into pieces.

    Args:
        turn: how utterances end, as in live sessions; None cuts as for an item of Manual mode.
        options: the rules.
    """

    def __init__(self, turn: TurnDetection | None, options: SessionOptions) -> None:
        self._track = Track(turn, options)
        self._open: PieceBegan | None = None
        self._speech_start = 0
        self._cuts = 0
        self._finished = False

    @property
    def received(self) -> int:
        """One past the last sample of the audio so far."""
        return self._track.received

    @property
    def earliest(self) -> int:
        """First sample that a later piece could begin with."""
        if self._finished:
            return self._track.received
        return self._open.start if self._open is not None else self._track.segmenter.keep_from

    def append(self, samples: Samples) -> None:
        """Add audio, float32 [n], mono, 16 kHz, in [-1, 1]; it is copied."""
        self._track.append(samples)

    def finish(self) -> list[Cut]:
        """Take what was appended for all there is; return the last piece, if no more frames need to be scored."""
        self._track.wait(Finish(), hard=True)
        return self._end_reached()

    def frames_to_score(self) -> ScoreFrames | None:
        """Return the next frames, if `scored` has been told of the last ones; None until more audio is appended."""
        return self._track.next_frames()

    def scored(self, probabilities: npt.NDArray[np.float32]) -> list[Cut]:
        """Take in the detector's answer, float32 [n] in [0, 1]; return the pieces that have ended."""
        cuts: list[Cut] = []
        for mark in self._track.scored(Scored(self._track.epoch, probabilities)) or ():
            self._obey(mark, cuts)
        cuts += self._end_reached()
        self._track.trim(self.earliest)
        return cuts

    def _end_reached(self) -> list[Cut]:
        marker = self._track.reached()
        if marker is None:
            return []
        cuts: list[Cut] = []
        for mark in self._track.segmenter.close(marker.position):
            self._obey(mark, cuts)
        self._finished = True
        return cuts

    def _obey(self, mark: Mark, cuts: list[Cut]) -> None:
        match mark:
            case PieceBegan(start=start, overlaps=overlaps):
                self._open = mark
                self._speech_start = max(start, self._track.segmenter.onset)
                if overlaps:
                    cuts[-1] = replace(cuts[-1], overlapped=True)  # both marks come at once, from one frame
            case PieceEnded(end=end, limit=limit):
                cuts.append(self._cut(end, limit))
                self._open = None
            case Paused() | ItemBegan() | ItemEnded():
                pass
            case _:
                assert_never(mark)

    def _cut(self, end: int, limit: int | None) -> Cut:
        assert self._open is not None, "only an open piece can end"
        start, overlaps = self._open.start, self._open.overlaps
        spoken = min(self._track.segmenter.last_speech, end if limit is None else limit)
        audio = self._track.read(start, end, limit).copy()  # a view would keep much more in memory
        audio.flags.writeable = False
        first, self._cuts = self._cuts == 0, self._cuts + 1
        return Cut(start, end, self._speech_start, max(spoken, self._speech_start), audio, overlaps, first=first)
