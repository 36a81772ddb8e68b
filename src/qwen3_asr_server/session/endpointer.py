"""Speech probabilities in, beginnings, pauses and ends of speech out.

Theory. A frame is *voiced* when its probability reaches the threshold; inside speech it stays so until
the probability is `hysteresis` below it. Speech must last `min_speech_samples` to count, both when it
opens an utterance and when it ends a pause, so that a click does neither. A pause shorter than
`pause_samples` is part of speech; a longer one is told (`PAUSED`), and `silence_samples` of it end the
utterance (`ENDED`). `last_speech` and the onsets depend on the probabilities alone, never on
`silence_samples`: where a pause ends utterances under two settings, both see the same speech.

It knows neither audio nor utterances: `segmenter.py` turns its marks into ranges of samples.

    state      voiced frame                          unvoiced frame
    QUIET      RISING, or SPEAKING + STARTED         QUIET
    RISING     RISING, or SPEAKING + STARTED         QUIET
    SPEAKING   SPEAKING                              FALLING
    FALLING    SPEAKING                              FALLING, or PAUSED + PAUSED
    PAUSED     RESUMING, or SPEAKING + RESUMED       PAUSED, or QUIET + ENDED
    RESUMING   RESUMING, or SPEAKING + RESUMED       PAUSED, or QUIET + ENDED
"""

from dataclasses import dataclass
from enum import Enum, auto

from qwen3_asr_server.domain import FRAME_SAMPLES


class Activity(Enum):
    """Where the speaker is."""

    QUIET = auto()
    RISING = auto()
    SPEAKING = auto()
    FALLING = auto()
    PAUSED = auto()
    RESUMING = auto()


class Turn(Enum):
    """What a frame has changed."""

    STARTED = auto()
    PAUSED = auto()
    RESUMED = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """The rules as data; lengths in samples."""

    threshold: float
    """Probability in (0, 1)."""
    hysteresis: float
    min_speech_samples: int
    pause_samples: int
    silence_samples: int | None
    """More than `pause_samples`; None never ends an utterance (Manual mode)."""


_AFTER_SPEECH = frozenset({Activity.FALLING, Activity.PAUSED, Activity.RESUMING})
_RISING = {Activity.QUIET: Activity.RISING, Activity.PAUSED: Activity.RESUMING}


class Endpointer:
    """Follow one track of frames, each of `FRAME_SAMPLES`.

    Attributes:
        activity: where the speaker is now.
        onset: first sample of the speech that began last.
        last_speech: one past the last voiced sample; `origin` before any.
        frontier: one past the last sample that was judged.
    """

    def __init__(self, rules: EndpointRules, origin: int) -> None:
        self.rules = rules
        self.activity = Activity.QUIET
        self.onset = origin
        self.last_speech = origin
        self.frontier = origin
        self._rise = origin

    @property
    def silence_samples(self) -> int:
        """Length of the silence since the last speech; 0 while speaking and before any speech."""
        return self.frontier - self.last_speech if self.activity in _AFTER_SPEECH else 0

    @property
    def in_utterance(self) -> bool:
        """True from a start to the end."""
        return self.activity not in (Activity.QUIET, Activity.RISING)

    def push(self, probability: float) -> Turn | None:
        """Judge the next frame."""
        begin = self.frontier
        self.frontier += FRAME_SAMPLES
        inside = self.activity is Activity.SPEAKING
        floor = self.rules.threshold - self.rules.hysteresis if inside else self.rules.threshold
        return self._voiced(begin) if probability >= floor else self._unvoiced()

    def rest(self) -> None:
        """Take the utterance for ended: what follows must begin a new one."""
        self.activity = Activity.QUIET

    def _voiced(self, begin: int) -> Turn | None:
        match self.activity:
            case Activity.SPEAKING:
                self.last_speech = self.frontier
                return None
            case Activity.FALLING:
                return self._speak(begin, None)
            case Activity.QUIET | Activity.PAUSED:
                self._rise = begin
                self.activity = _RISING[self.activity]
            case Activity.RISING | Activity.RESUMING:
                pass
        if self.frontier - self._rise < self.rules.min_speech_samples:
            return None
        return self._speak(self._rise, Turn.STARTED if self.activity is Activity.RISING else Turn.RESUMED)

    def _speak(self, onset: int, turn: Turn | None) -> Turn | None:
        self.onset = onset
        self.last_speech = self.frontier
        self.activity = Activity.SPEAKING
        return turn

    def _unvoiced(self) -> Turn | None:
        match self.activity:
            case Activity.QUIET | Activity.RISING:
                self.activity = Activity.QUIET
                return None
            case Activity.SPEAKING | Activity.FALLING:
                self.activity = Activity.FALLING
                if self.frontier - self.last_speech < self.rules.pause_samples:
                    return None
                self.activity = Activity.PAUSED
                return Turn.PAUSED
            case Activity.PAUSED | Activity.RESUMING:
                self.activity = Activity.PAUSED
                limit = self.rules.silence_samples
                if limit is None or self.frontier - self.last_speech < limit:
                    return None
                self.activity = Activity.QUIET
                return Turn.ENDED
