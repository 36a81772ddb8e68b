"""Choose what of the last answer the next step of a piece begins with, and how much it may write.

A step does not write its text anew: it takes the older part of the last answer as given and goes on from there.
Young tokens are given up, because more audio may change them. Token ids are kept as the model wrote them, since
decoded and encoded again they could be cut elsewhere. Pure: ids are numbers, `decode` comes from outside, time is
the sample index of the piece. One `Rollback` belongs to one engine stream; finals are decoded without it.
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE, StepKind
from qwen3_asr_server.text.prompt import parse_output

Decode = Callable[[Sequence[int]], str]
"""Ids to text, `<asr_text>` included; a character that is cut off becomes U+FFFD."""


@dataclass(frozen=True, slots=True)
class RollbackRules:
    """When a token may be kept. Samples are at 16 kHz."""

    min_tokens: int = 5
    """Tokens given up at the least."""
    min_age_samples: int = 6 * SAMPLE_RATE // 5
    """Audio that must have come after the step that first had a token in its place, at 1.2 s."""
    header_speech_samples: int = SAMPLE_RATE
    """Speech before the language is trusted, at 1 s."""
    header_steps: int = 2
    """Answers in a row that must name the same language."""
    stall_speech_samples: int = 6 * SAMPLE_RATE // 5
    """Speech without a new token that makes a stall, at 1.2 s, if `stall_steps` have passed too."""
    stall_steps: int = 2


class Rollback:
    """The prefix of one piece.

    Args:
        asr_text: id of `<asr_text>`, the end of the header.
        decode: the tokenizer's; called with a header, or with the last few ids of a prefix.
        forced: the header is part of the prompt, so answers are text alone.
        rules: when a token may be kept.
    """

    def __init__(
        self, asr_text: int, decode: Decode, *, forced: bool = False, rules: RollbackRules | None = None
    ) -> None:
        self._asr_text = asr_text
        self._decode = decode
        self._forced = forced
        self._rules = rules or RollbackRules()
        self.restart()

    def restart(self) -> None:
        """Forget every answer: the next step writes from nothing. For an answer that is under suspicion."""
        self._header: tuple[int, ...] = ()
        self._header_steps = 0
        self._text: tuple[int, ...] = ()
        self._since: tuple[int, ...] = ()
        self._upto = 0
        self._speech = 0
        self._grown: tuple[int, ...] = ()
        self._grown_at = 0
        self._steps_without = 0
        self._stalled = False

    def heard(self, ids: Sequence[int], upto: int, speech: int) -> None:
        """Take the answer of a step in.

        Args:
            ids: the whole answer: the prefix that was given and what the model wrote, without end-of-text.
            upto: end of the audio that was heard, in samples from the start of the piece.
            speech: how much of it was speech, in samples; never less than before.
        """
        header, text = self._split(ids)
        self._header_steps = self._header_steps + 1 if header == self._header else 1
        self._header = header
        agreed = _common(text, self._text)
        self._since = (*self._since[:agreed], *[upto] * (len(text) - agreed))
        self._text, self._upto, self._speech = text, upto, speech
        # After a step from nothing the count begins anew, or a speaker who only hums would get no prefix again.
        if self._stalled or _common(ids, self._grown) < len(ids):
            self._grown, self._grown_at, self._steps_without = tuple(ids), speech, 0
        else:
            self._steps_without += 1
        self._stalled = (
            self._steps_without >= self._rules.stall_steps
            and speech - self._grown_at >= self._rules.stall_speech_samples
        )

    @property
    def stalled(self) -> bool:
        """Whether speech went on and the answer did not, so that the next step begins from nothing."""
        return self._stalled

    def prefix(self) -> tuple[int, ...]:
        """Return the ids that the next step begins with; empty to begin from nothing.

        They are the header, if the language is not forced, and the beginning of the text. The header goes whole or
        not at all, and without it nothing can follow.
        """
        if self._stalled or not self._header_is_settled():
            return ()
        return (*self._header, *self._text[: self._kept()])

    def given_up(self) -> int:
        """Return how many ids of the last answer the next step writes anew, for `max_tokens`."""
        return len(self._header) + len(self._text) - len(self.prefix())

    def _split(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids = tuple(ids)
        if self._forced:
            return (), ids
        if self._asr_text not in ids:
            return ids, ()
        end = ids.index(self._asr_text) + 1
        return ids[:end], ids[end:]

    def _header_is_settled(self) -> bool:
        """Return whether the header may be forced: agreed upon, heard long enough, and naming a language."""
        if self._forced:
            return True
        return (
            self._header[-1:] == (self._asr_text,)
            and self._header_steps >= self._rules.header_steps
            and self._speech >= self._rules.header_speech_samples
            and parse_output(self._decode(self._header), None).language_code is not None
        )

    def _kept(self) -> int:
        """Return how many tokens of the text are kept."""
        newest = self._upto - self._rules.min_age_samples
        # Not sorted: a step may hear less than the one before it, so the first young token decides.
        old = next((i for i, since in enumerate(self._since) if since > newest), len(self._since))
        kept = max(0, min(old, len(self._text) - self._rules.min_tokens))
        while kept and _is_bad_end(self._decode(self._text[max(0, kept - _TAIL_IDS) : kept])):
            kept -= 1
        return kept


def max_tokens(
    kind: StepKind, new_audio_s: float, given_up: int, max_new_tokens: int = 32, *, catch_up: bool = False
) -> int:
    """Return how many tokens a step may write.

    Args:
        kind: only a PARTIAL is bounded by `max_new_tokens`.
        new_audio_s: audio that the prefix does not cover, in seconds; all of it for a step without prefix.
        given_up: tokens of the last answer that are to be written anew.
        max_new_tokens: the setting, at least 1.
        catch_up: a PARTIAL that must write the text of much audio, so that the setting would cut it.
    """
    needed = given_up + math.ceil(_TOKENS_PER_S * new_audio_s) + _SPARE_TOKENS
    if kind is StepKind.PARTIAL and not catch_up:
        return min(needed, max_new_tokens)
    return max(_MIN_FINAL_TOKENS, needed)


_TOKENS_PER_S: Final = 12
_SPARE_TOKENS: Final = 8
_MIN_FINAL_TOKENS: Final = 32
_TAIL_IDS: Final = 8
"""Enough to hold the last character whole: four bytes, each perhaps a token of its own."""


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how long the common beginning is."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _is_bad_end(text: str) -> bool:
    """Return whether a prefix should not end so: in half a character, or in what invites the end of the text."""
    last = text[-1:]
    return not last or last == "\ufffd" or last.isspace() or unicodedata.category(last)[0] == "P"
