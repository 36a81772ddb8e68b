"""The `session` object of the DashScope realtime protocol: reading updates, writing echoes.

Values are kept as the wire writes them (sensitivity in [-1, 1], `pcm`), so that they are echoed as they
came; `config` translates them. An update merges: a missing key keeps its value, null gives its default back
(but `turn_detection: null` is Manual mode), and an update with one bad value changes nothing. Knows no events
and no connection; used by `dashscope_realtime`.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from qwen3_asr_server.domain import AudioEncoding, AudioFormat, SessionConfig, TurnDetection
from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.protocols._base import Capabilities
from qwen3_asr_server.protocols._fields import Fields, JsonObject, quoted, supported
from qwen3_asr_server.text import languages

DEFAULT_SENSITIVITY: Final = 0.2
"""The wire's default `threshold`; stands for `Capabilities.default_threshold`."""
LEAST_PROBABILITY: Final = 0.05
MOST_PROBABILITY: Final = 0.95
"""Speech probabilities that the ends of the wire's scale, -1 and 1, stand for."""
SAMPLE_RATES: Final = (8000, 16000, 24000, 48000)
"""Hz. The flat field is documented with the first two, the SDK's nested one with all."""
ENCODINGS: Final = {
    "pcm": AudioEncoding.PCM,
    "pcm16": AudioEncoding.PCM,
    "wav": AudioEncoding.PCM,
    "opus": AudioEncoding.OPUS,
}
"""`pcm16` is what the SDK sends when its user names no format; a WAV header is skipped in any pcm stream."""

Value = TypeVar("Value")

_OURS: Final = frozenset({"id", "object", "model"})
_OMNI: Final = frozenset({"voice", "output_audio_format", "instructions", "translation", "smooth_output"})
_READ: Final = frozenset(
    {"modalities", "input_audio_format", "sample_rate", "audio", "input_audio_transcription", "turn_detection", "words"}
)
_READ_IN_TRANSCRIPTION: Final = frozenset({"language", "corpus", "corpus_text"})
_CONSTANT: Final = {"create_response": True, "interrupt_response": True}
_READ_IN_TURN_DETECTION: Final = frozenset(
    {"type", "threshold", "silence_duration_ms", "prefix_padding_ms", *_CONSTANT}
)


@dataclass(frozen=True, slots=True)
class WireTurnDetection:
    """`turn_detection` in the wire's units."""

    threshold: float = DEFAULT_SENSITIVITY
    """Sensitivity in [-1, 1]; lower hears more."""
    silence_duration_ms: int = 800
    prefix_padding_ms: int = 300
    padding_given: bool = False
    """The vendor shows no padding; we do once a client has set it."""

    def as_json(self) -> dict[str, Any]:
        """Return what `session.created` shows."""
        echo: dict[str, Any] = {
            "type": "server_vad",
            "threshold": self.threshold,
            "silence_duration_ms": self.silence_duration_ms,
        }
        if self.padding_given:
            echo["prefix_padding_ms"] = self.prefix_padding_ms
        return echo


@dataclass(frozen=True, slots=True)
class WireSession:
    """The effective session object."""

    id: str
    model: str
    audio: AudioFormat = AudioFormat()
    transcription_given: bool = False
    """False shows `input_audio_transcription` as null, as the vendor does before a client sets it."""
    language: str | None = None
    context: str = ""
    turn_detection: WireTurnDetection | None = WireTurnDetection()
    words: bool = False

    @classmethod
    def default(cls, session_id: str, model: str, capabilities: Capabilities) -> "WireSession":
        """Return the session that a client gets without asking for anything."""
        begin = capabilities.turn_detection
        if begin is None:
            return cls(session_id, model, turn_detection=None)
        detection = WireTurnDetection(silence_duration_ms=begin.silence_ms, prefix_padding_ms=begin.prefix_padding_ms)
        return cls(session_id, model, turn_detection=detection)

    def config(self, default_threshold: float) -> SessionConfig:
        """Translate into what sessions understand.

        Args:
            default_threshold: speech probability that the wire's default sensitivity stands for.
        """
        wire, detection = self.turn_detection, None
        if wire is not None:
            detection = TurnDetection(
                threshold=probability_of(wire.threshold, default_threshold),
                silence_ms=wire.silence_duration_ms,
                prefix_padding_ms=wire.prefix_padding_ms,
            )
        return SessionConfig(self.audio, self.language, self.context, detection, self.words)

    def created(self) -> dict[str, Any]:
        """Return the object of `session.created`."""
        return {
            "id": self.id,
            "object": "realtime.session",
            "model": self.model,
            "modalities": ["text"],
            "input_audio_format": self.audio.encoding.value,
            "sample_rate": self.audio.sample_rate,
            "input_audio_transcription": self._transcription(),
            "turn_detection": None if self.turn_detection is None else self.turn_detection.as_json(),
        }

    def updated(self, changes: JsonObject) -> dict[str, Any]:
        """Return the object of `session.updated`: the session, and the unknown keys of `changes` as they came.

        Unknown keys are not kept, so a client cannot pile them up in the server.
        """
        echo = self.created()
        if self.words:
            echo["words"] = True
        detection, transcription = echo["turn_detection"], echo["input_audio_transcription"]
        if detection is not None:
            detection |= _CONSTANT | _unknown(changes.get("turn_detection"), _READ_IN_TURN_DETECTION)
        if transcription is not None:
            transcription |= _unknown(changes.get("input_audio_transcription"), _READ_IN_TRANSCRIPTION)
        return echo | _unknown(changes, _READ | _OMNI | _OURS)

    def _transcription(self) -> dict[str, Any] | None:
        if not self.transcription_given:
            return None
        echo: dict[str, Any] = {}
        if self.language is not None:
            echo["language"] = self.language
        if self.context:
            echo["corpus"] = {"text": self.context}
        return echo


def probability_of(sensitivity: float, default_threshold: float, default: float = DEFAULT_SENSITIVITY) -> float:
    """Return the speech probability that a wire threshold stands for.

    Args:
        sensitivity: in [-1, 1].
        default_threshold: probability that `default` stands for, in (0.05, 0.95).
        default: the wire's own default, in (-1, 1).
    """
    if sensitivity <= default:
        share = (sensitivity + 1) / (default + 1)
        return LEAST_PROBABILITY + share * (default_threshold - LEAST_PROBABILITY)
    share = (sensitivity - default) / (1 - default)
    return default_threshold + share * (MOST_PROBABILITY - default_threshold)


def forced_language(text: str | None, offered: frozenset[str], param: str) -> str | None:
    """Return the wire code of the language that a client names; None where it is to be detected.

    Args:
        text: a code, a name, a dialect, `auto` or nothing.
        offered: wire codes that the model knows.
        param: the field, as the client named it.

    Raises:
        InvalidValue: there is no such language, or the model does not know it.
    """
    if text is None or text.strip().lower() in ("", "auto"):
        return None
    language = languages.find(text)
    if language is None or language.forced_code not in offered:
        raise InvalidValue(f"Invalid value: {quoted(text)}. {supported(sorted(offered))}", param=param)
    return language.forced_code


def merge(session: WireSession, changes: Fields, capabilities: Capabilities) -> WireSession:
    """Return `session` with the fields of a `session.update` laid over it.

    Raises:
        InvalidValue: a value is not supported, with `param` naming it; nothing is to be changed.
    """
    default = WireSession.default(session.id, session.model, capabilities)
    changes.texts("modalities")
    session = _with_transcription(session, changes, capabilities)
    return replace(
        session,
        audio=_audio_format(session.audio, changes, default.audio),
        turn_detection=_turn_detection(session.turn_detection, changes, default.turn_detection or WireTurnDetection()),
        words=_or_default(changes, "words", changes.flag("words"), session.words, default.words),
    )


def _or_default(changes: Fields, name: str, given: Value | None, previous: Value, default: Value) -> Value:
    """Return what a field is after an update: as given, the default after null, the previous value else."""
    if given is not None:
        return given
    return default if changes.has(name) else previous


def _audio_format(previous: AudioFormat, changes: Fields, default: AudioFormat) -> AudioFormat:
    name = changes.choice("input_audio_format", ENCODINGS)
    encoding = _or_default(
        changes, "input_audio_format", ENCODINGS[name] if name else None, previous.encoding, default.encoding
    )
    given_rate = changes.integer_among("sample_rate", SAMPLE_RATES)
    rate = _or_default(changes, "sample_rate", given_rate, previous.sample_rate, default.sample_rate)
    nested = changes.object("audio", "input", "format")
    if nested is not None:
        name = nested.choice("type", ENCODINGS)
        encoding = _or_default(nested, "type", ENCODINGS[name] if name else None, encoding, default.encoding)
        given_rate = nested.integer_among("sample_rate", SAMPLE_RATES)
        rate = _or_default(nested, "sample_rate", given_rate, rate, default.sample_rate)
    return AudioFormat(encoding, rate)


def _with_transcription(session: WireSession, changes: Fields, capabilities: Capabilities) -> WireSession:
    if not changes.has("input_audio_transcription"):
        return session
    options = changes.object("input_audio_transcription")
    if options is None:
        return replace(session, transcription_given=False, language=None, context="")
    language, context = session.language, session.context
    if options.has("language"):
        language = forced_language(options.text("language"), capabilities.languages, options.place("language"))
    if options.has("corpus_text"):
        context = _context(options, "corpus_text", capabilities.max_context_chars)
    if options.has("corpus"):
        corpus = options.object("corpus")
        if corpus is None:
            context = ""
        elif corpus.has("text"):
            context = _context(corpus, "text", capabilities.max_context_chars)
    return replace(session, transcription_given=True, language=language, context=context)


def _context(holder: Fields, name: str, max_chars: int) -> str:
    text = holder.text(name) or ""
    if len(text) > max_chars:
        raise InvalidValue(
            f"Invalid value: {len(text)} characters. At most {max_chars} are supported.", param=f"{holder.path}.{name}"
        )
    # JSON can carry half of a surrogate pair; no tokenizer takes it.
    return text.encode("utf-8", "replace").decode("utf-8")


def _turn_detection(
    previous: WireTurnDetection | None, changes: Fields, default: WireTurnDetection
) -> WireTurnDetection | None:
    if not changes.has("turn_detection"):
        return previous
    fields = changes.object("turn_detection")
    if fields is None:
        return None
    previous = previous or default
    fields.choice("type", ("server_vad",))
    threshold = fields.number("threshold", -1, 1)
    silence_ms = fields.integer("silence_duration_ms", 200, 6000)
    padding_ms = fields.integer("prefix_padding_ms", 0, 2000)
    return WireTurnDetection(
        threshold=_or_default(fields, "threshold", threshold, previous.threshold, default.threshold),
        silence_duration_ms=_or_default(
            fields, "silence_duration_ms", silence_ms, previous.silence_duration_ms, default.silence_duration_ms
        ),
        prefix_padding_ms=_or_default(
            fields, "prefix_padding_ms", padding_ms, previous.prefix_padding_ms, default.prefix_padding_ms
        ),
        padding_given=_or_default(
            fields, "prefix_padding_ms", None if padding_ms is None else True, previous.padding_given, False
        ),
    )


def _unknown(values: JsonObject | None, known: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if name not in known}
