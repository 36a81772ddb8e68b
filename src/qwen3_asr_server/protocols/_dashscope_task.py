"""What a client of the run-task protocol asks of its task: model, format, endpointing, context.

A missing field, null and the zero value of languages that always send every field mean the vendor's default. Fields
that have no meaning here are passed over, as are unknown ones; the rest is refused with the field's name when it is
wrong. Knows no events and no connection; used by `dashscope_inference`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qwen3_asr_server.domain import SAMPLE_RATE, AudioEncoding, AudioFormat, SessionConfig, TurnDetection
from qwen3_asr_server.errors import InvalidValue, UnknownModel
from qwen3_asr_server.protocols._base import Capabilities, Offers
from qwen3_asr_server.protocols._dashscope_instructions import object_in
from qwen3_asr_server.protocols._dashscope_session import forced_language, probability_of
from qwen3_asr_server.protocols._fields import Fields, quoted
from qwen3_asr_server.text.hotwords import BEFOREHAND, context_of
from qwen3_asr_server.text.special_words import SpecialWords, special_words_of

PARAMETERS: Final = "payload.parameters"
FORMATS: Final = {
    "pcm": AudioEncoding.PCM,
    "wav": AudioEncoding.PCM,
    "mp3": AudioEncoding.MP3,
    "opus": AudioEncoding.OPUS,
    "speex": AudioEncoding.SPEEX,
    "aac": AudioEncoding.AAC,
    "amr": AudioEncoding.AMR,
}
"""The vendor's names, in any case. A WAV or Ogg header in the audio wins over them."""
SAMPLE_RATES: Final = (8000, 48000)
"""Hz, the lowest and the highest of pcm."""
SILENCE_MS: Final = 1300
"""The wire's default for the silence that ends a sentence."""
NOISE_THRESHOLD: Final = 0.0
"""The wire's default, between all that is noise and all that is speech; stands for `Capabilities.default_threshold`."""
MAX_MESSAGES: Final = 100
"""Messages of context at once; the vendor takes five of each role."""

_VENDOR_MODEL: Final = re.compile(
    r"(qwen-audio-[\d.]+-asr-flash-(streaming|message)|(qwen3-asr-flash|fun-asr|paraformer)(-[\w.]+)*?-realtime)(-[\w.-]*)?"
)
"""The vendor's names for models of this protocol; they stand for the default model."""
_SPELLINGS: Final[Mapping[str, Callable[[str], Any]]] = {
    "format": str.lower,
    "sample_rate": lambda text: int(text) if re.fullmatch("[0-9]{1,6}", text) else text,
    "language_hints": lambda text: [text],
}
"""What to make of values that come as one string."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What a task is to do."""

    model: str
    """As the client named it."""
    config: SessionConfig
    special_words: SpecialWords
    """What is hidden or left out in transcripts."""
    hotwords: Mapping[str, Any]
    """The fields of hotwords and texts as they came, for contexts that change."""
    max_context_chars: int

    @classmethod
    def of(cls, payload: Fields, offers: Offers) -> "TaskOptions":
        """Read the payload of a `run-task`.

        Raises:
            InvalidValue: a field is not supported.
            UnknownModel: there is no such model.
        """
        for name, only in (("task_group", "audio"), ("task", "asr"), ("function", "recognition")):
            payload.choice(name, (only,))
        model, capabilities = _model(payload, offers)
        parameters = _parameters(payload)
        noise = parameters.number("speech_noise_threshold", -1, 1)
        config = SessionConfig(
            audio=_audio(parameters),
            language=_language(parameters, capabilities),
            turn_detection=TurnDetection(
                threshold=probability_of(noise or NOISE_THRESHOLD, capabilities.default_threshold, NOISE_THRESHOLD),
                silence_ms=parameters.integer("max_sentence_silence", 200, 6000) or SILENCE_MS,
            ),
            words=True,
        )
        words = special_words_of(parameters.values.get("special_word_filter"), f"{PARAMETERS}.special_word_filter")
        hotwords = {name: parameters.values.get(name) for name in BEFOREHAND}
        options = cls(model, config, words, hotwords, capabilities.max_context_chars)
        return options.with_context(object_in(payload, "input"))

    def with_context(self, given: Fields) -> "TaskOptions":
        """Return the same with the texts of an `input`, which take the place of those before.

        Raises:
            InvalidValue: there is too much of it, or something in it is no text.
        """
        texts = _texts(given)
        if sum(map(len, texts)) > self.max_context_chars:
            limit = f"At most {self.max_context_chars} characters are supported."
            raise InvalidValue(f"The context is too long. {limit}", param=given.place("context"))
        context = context_of(self.hotwords, *texts, path=f"{PARAMETERS}.")
        return replace(self, config=replace(self.config, context=context))


def _parameters(payload: Fields) -> Fields:
    """Return the parameters that have a value of their own, neither nothing nor zero."""
    fields = object_in(payload, "parameters")
    given = {name: value for name, value in fields.values.items() if value not in (None, "", 0)}
    for name, respelt in _SPELLINGS.items():
        if isinstance(text := given.get(name), str):
            given[name] = respelt(text)
    return Fields(given, fields.path)


def _audio(parameters: Fields) -> AudioFormat:
    """Return the format of the audio; only pcm does not say itself how fast it is."""
    encoding = FORMATS[parameters.choice("format", FORMATS) or "pcm"]
    if encoding is not AudioEncoding.PCM:
        return AudioFormat(encoding)
    return AudioFormat(encoding, parameters.integer("sample_rate", *SAMPLE_RATES) or SAMPLE_RATE)


def _model(payload: Fields, offers: Offers) -> tuple[str, Capabilities]:
    model = payload.text("model")
    if not model:
        raise InvalidValue("There is no model.", param="payload.model")
    capabilities = offers(model)
    known = {capabilities.model, *capabilities.models}
    if model not in known and not _VENDOR_MODEL.fullmatch(model):
        names = ", ".join(sorted(known))
        raise UnknownModel(f"Model {quoted(model)} does not exist. Models here: {names}.", param="payload.model")
    return model, capabilities


def _language(parameters: Fields, capabilities: Capabilities) -> str | None:
    """Return the language that all is in; several hints leave it to the model."""
    hints = [hint for hint in parameters.texts("language_hints") or () if hint.strip()]
    named = hints[0] if len(hints) == 1 else None
    return forced_language(named, capabilities.languages, f"{PARAMETERS}.language_hints")


def _texts(given: Fields) -> list[str]:
    """Return what the messages of a context say, each `{"role", "content": [{"type", "text"}]}`."""
    messages = given.values.get("context")
    param = given.place("context")
    if messages is None:
        return []
    if not isinstance(messages, list) or len(messages) > MAX_MESSAGES:
        raise InvalidValue(f"The context is a list of at most {MAX_MESSAGES} messages.", param=param)
    return [text for place, message in enumerate(messages) for text in _said(message, f"{param}[{place}]")]


def _said(message: object, param: str) -> list[str]:
    content = Fields.of(message, param).values.get("content")
    parts = content if isinstance(content, list) else [content]
    if len(parts) > MAX_MESSAGES:
        raise InvalidValue(f"A message has at most {MAX_MESSAGES} parts.", param=param)
    texts = [part if isinstance(part, str) else Fields.of(part, f"{param}.content").text("text") for part in parts]
    return [text for text in texts if text]
