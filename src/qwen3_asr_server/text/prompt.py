"""The prompt of Qwen3-ASR as token ids, and its answer taken apart.

A prompt is a system turn with the context (there even when empty), a user turn with one block of audio, and the
start of the answer. The answer is `language {Name}<asr_text>{text}`, or text alone where the header was forced.
Knows no tokenizer, model or engine: an `encode` function comes in once, ids go out. The Qwen3-ASR engines call it,
and `rollback` and `guard` share its notion of a header and of a control token.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from qwen3_asr_server.errors import EngineNotReady, InvalidValue
from qwen3_asr_server.text.languages import DIALECTS, WEIGHTS_ONLY_LANGUAGES, WIRE_LANGUAGES, find

Encode = Callable[[str], Sequence[int]]
"""Text to ids. Adds nothing at the ends, and knows the added tokens (`<|im_start|>`, `<asr_text>`)."""

ASR_TEXT: Final = "<asr_text>"
"""Ends the header of an answer."""

CONTROL_TOKEN: Final = re.compile(
    r"<\|[^<>]*\|>|</?(?:asr_text|timestamp|think|tool_call|tool_response|tts_[a-z_]+|non_speech|blank\d+)>"
)
"""What the tokenizer may read as one of its added tokens instead of as text."""


@dataclass(frozen=True, slots=True)
class PromptIds:
    """The fixed token ids of a prompt, for one tokenizer. Made once, at the start of an engine."""

    im_start: int
    im_end: int
    audio_start: int
    audio_end: int
    audio_pad: int
    """The placeholder that stands once for each embedding of the audio encoder."""
    asr_text: int
    newline: tuple[int, ...]
    system: tuple[int, ...]
    user: tuple[int, ...]
    assistant: tuple[int, ...]
    language_headers: Mapping[str, tuple[int, ...]]
    """Wire code → ids of `language {Name}<asr_text>`, for every language that may be forced."""

    @classmethod
    def from_encode(cls, encode: Encode) -> "PromptIds":
        """Look all ids up.

        Raises:
            EngineNotReady: the tokenizer lacks a token, so it is not that of a Qwen3-ASR model.
        """
        return cls(
            im_start=_single(encode, "<|im_start|>"),
            im_end=_single(encode, "<|im_end|>"),
            audio_start=_single(encode, "<|audio_start|>"),
            audio_end=_single(encode, "<|audio_end|>"),
            audio_pad=_single(encode, "<|audio_pad|>"),
            asr_text=_single(encode, ASR_TEXT),
            newline=tuple(encode("\n")),
            system=tuple(encode("system\n")),
            user=tuple(encode("user\n")),
            assistant=tuple(encode("assistant\n")),
            language_headers=MappingProxyType({code: tuple(encode(forced_header(code))) for code in FORCED_NAMES}),
        )

    def opening(self, context_ids: Sequence[int]) -> list[int]:
        """Return the ids before the first audio placeholder: the same for every step of a session.

        Args:
            context_ids: ids of the context (see `clean_context`); may be empty.
        """
        system_turn = [self.im_start, *self.system, *context_ids, self.im_end, *self.newline]
        return [*system_turn, self.im_start, *self.user, self.audio_start]

    def prompt_ids(
        self,
        context_ids: Sequence[int],
        audio_tokens: Sequence[int],
        language_ids: Sequence[int] | None,
        prefix_ids: Sequence[int],
    ) -> list[int]:
        """Return the prompt of one step.

        Args:
            context_ids: ids of the context; may be empty.
            audio_tokens: how many placeholders each window of audio has, in order. All stand in one block, so that
                several windows read like one long one.
            language_ids: one of `language_headers`, or None to leave the language to the model.
            prefix_ids: the beginning of the answer that is taken as given. Holds the header only if the language
                was not forced.
        """
        return [
            *self.opening(context_ids),
            *[self.audio_pad] * sum(audio_tokens),
            self.audio_end,
            self.im_end,
            *self.newline,
            self.im_start,
            *self.assistant,
            *(language_ids or ()),
            *prefix_ids,
        ]

    def audio_offsets(self, context_ids: Sequence[int], audio_tokens: Sequence[int]) -> list[int]:
        """Return where in `prompt_ids` the placeholders of each window begin."""
        return list(accumulate(audio_tokens, initial=len(self.opening(context_ids))))[:-1]


FORCED_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {language.code: language.name for language in (*WIRE_LANGUAGES, *WEIGHTS_ONLY_LANGUAGES) if language.weights}
)
"""Wire code → English name, for every language that the weights can be told to expect."""


def forced_header(code: str) -> str:
    """Return the beginning of an answer in a given language.

    Raises:
        InvalidValue: the weights cannot be told to expect this language.
    """
    name = FORCED_NAMES.get(code)
    if name is None:
        raise InvalidValue(f"the model cannot be set to the language '{code}'", param="language")
    return f"language {name}{ASR_TEXT}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer taken apart."""

    language_code: str | None
    """Wire code: the forced one, or what the header names; a dialect counts as its language. None for silence,
    for a name that nobody knows, and without a header."""
    text: str
    """What was said, without control tokens, headers in the middle and outer white space."""
    has_header: bool
    """The answer itself named a language, or `None`."""
    body: str
    """What follows the header, as the model wrote it: what `guard.judge` wants to see."""


def parse_output(text: str, forced: str | None) -> Parsed:
    """Take an answer apart.

    Without `<asr_text>` everything is text, unless it reads like a header that was cut short. A forced answer is
    text from its start, and a header that the model writes all the same is dropped.

    Args:
        text: the whole answer, with what of it was given as prefix but without a forced header. Never raises.
        forced: wire code of the forced language, or None.
    """
    stripped = text.strip()
    head, tag, rest = stripped.partition(ASR_TEXT)
    name = _name_in(head) if tag else _name_in_part(head) if forced is None else None
    body = stripped if name is None and (head or not tag) else rest.strip()
    found = find(name) if forced is None and name else None
    said = strip_control_tokens(_HEADER_INSIDE.sub(" ", body)).strip()
    return Parsed(found.forced_code if found else forced, said, name is not None, body)


def clean_context(text: str, max_chars: int) -> str:
    """Return a client's context fit for the system turn.

    Control tokens go, also those that only form when an inner one is taken out, and half surrogate pairs, which
    no tokenizer takes. Outer white space goes too, because it would merge with the line break before it.

    Args:
        text: anything. Never raises. Of a very long one only the beginning is looked at.
        max_chars: longest result, in code points; a letter is not cut off from its marks.
    """
    cleaned = strip_control_tokens(_SURROGATES.sub("", text[: looked_at(max_chars)])).strip()
    if len(cleaned) <= max_chars:
        return cleaned
    end = max(0, max_chars)
    while end and _continues(cleaned[end - 1], cleaned[end]):
        end -= 1
    return cleaned[:end].rstrip()


def looked_at(max_chars: int) -> int:
    """Return how much of a client's text is read to find so many characters: it may have megabytes."""
    return 4 * max(0, max_chars) + _SPARE_CHARS


def strip_control_tokens(text: str) -> str:
    """Return the text without control tokens, as often as taking one out makes another. Linear in the length."""
    kept: list[str] = []
    opened: list[int] = []
    for part in _ANGLES.split(text):
        kept.append(part)
        if part == "<":
            opened.append(len(kept) - 1)
        elif part == ">" and opened:
            # A token begins with the last `<` before its only `>`: one that does not end here never will.
            if CONTROL_TOKEN.fullmatch("".join(kept[opened[-1] :])):
                del kept[opened.pop() :]
            else:
                opened.clear()
    return "".join(kept)


_SPARE_CHARS: Final = 10_000
_ANGLES: Final = re.compile(r"([<>])")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")
_JOINER: Final = "\u200d"
_LANGUAGE_LINE: Final = re.compile(r"^language[ \t]+(\S.*)$", re.IGNORECASE | re.MULTILINE)
_HEADERS: Final = tuple(
    f"language {name}".lower()
    for name in (*(language.name for language in (*WIRE_LANGUAGES, *WEIGHTS_ONLY_LANGUAGES, *DIALECTS)), "none")
)


_NAMES: Final = "|".join(re.escape(header.removeprefix("language ")) for header in _HEADERS)
_HEADER_INSIDE: Final = re.compile(
    rf"(?:language\s+)?(?:{_NAMES}){ASR_TEXT}",
    re.IGNORECASE,
)
"""A header where none belongs: a model that has lost its way begins anew."""


def _single(encode: Encode, token: str) -> int:
    ids = encode(token)
    if len(ids) != 1:
        raise EngineNotReady(f"this is not the tokenizer of a Qwen3-ASR model: it has no token {token}")
    return ids[0]


def _name_in(head: str) -> str | None:
    """Return the name in a whole header, or None if this is no header."""
    line = _LANGUAGE_LINE.search(head)
    return line and line.group(1).strip()


def _name_in_part(text: str) -> str | None:
    """Return the name in a header that lacks its end, empty if it is not whole, or None if this is no header."""
    part = text.lower()
    if part in _HEADERS:
        return _name_in(text)
    return "" if part.startswith("language") and any(header.startswith(part) for header in _HEADERS) else None


def _continues(before: str, char: str) -> bool:
    """Return whether a character belongs to the one before it: a mark, a variation selector, a joined emoji."""
    return unicodedata.category(char)[0] == "M" or _JOINER in (before, char)
