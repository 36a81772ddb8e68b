"""The one table of languages: codes, English names and other ways to write them.

Two lists meet here. The DashScope wire knows 27 codes (`wire`); the open Qwen3-ASR weights know 30
languages by English name (`weights`) and hear 22 Chinese dialects that cannot be forced (`dialect_of`
says which language stands for them). What a running server offers is its engine's `EngineInfo.languages`,
not this table: it knows no engine and no protocol. Protocols, engines and language menus look things up here.
What keeps a session in its language is here too, as data: `established`, `INERTIA`.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from qwen3_asr_server.errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Language:
    """A language or dialect."""

    code: str
    """ISO 639 code as the wire writes it; dialects without one have a private-use tag (`zh-x-henan`)."""
    name: str
    """English name, as the weights spell it where they know it."""
    aliases: tuple[str, ...] = ()
    """Other codes and names, in lower case."""
    wire: bool = False
    """Among the 27 codes of the DashScope documentation."""
    weights: bool = False
    """May be forced on the open weights."""
    dialect_of: str | None = None
    """Code of the language to ask for instead; None for languages."""

    @property
    def forced_code(self) -> str:
        """The code to force on an engine: the language's own, or that of which it is a dialect."""
        return self.dialect_of or self.code


WIRE_LANGUAGES: Final = (
    Language("zh", "Chinese", ("cmn", "mandarin"), wire=True, weights=True),
    Language("yue", "Cantonese", ("zh-yue", "zh-hk", "zh-hant-hk", "zh-mo", "zh-hant-mo"), wire=True, weights=True),
    Language("en", "English", wire=True, weights=True),
    Language("ja", "Japanese", wire=True, weights=True),
    Language("de", "German", wire=True, weights=True),
    Language("ko", "Korean", wire=True, weights=True),
    Language("ru", "Russian", wire=True, weights=True),
    Language("fr", "French", wire=True, weights=True),
    Language("pt", "Portuguese", wire=True, weights=True),
    Language("ar", "Arabic", wire=True, weights=True),
    Language("it", "Italian", wire=True, weights=True),
    Language("es", "Spanish", wire=True, weights=True),
    Language("hi", "Hindi", wire=True, weights=True),
    Language("id", "Indonesian", ("in",), wire=True, weights=True),
    Language("th", "Thai", wire=True, weights=True),
    Language("tr", "Turkish", wire=True, weights=True),
    Language("uk", "Ukrainian", wire=True),
    Language("vi", "Vietnamese", wire=True, weights=True),
    Language("cs", "Czech", wire=True, weights=True),
    Language("da", "Danish", wire=True, weights=True),
    Language("fil", "Filipino", ("tl", "tagalog"), wire=True, weights=True),
    Language("fi", "Finnish", wire=True, weights=True),
    Language("is", "Icelandic", wire=True),
    Language("ms", "Malay", wire=True, weights=True),
    Language("no", "Norwegian", ("nb", "nn"), wire=True),
    Language("pl", "Polish", wire=True, weights=True),
    Language("sv", "Swedish", wire=True, weights=True),
)
"""What a DashScope client may name, in the order of its documentation."""

WEIGHTS_ONLY_LANGUAGES: Final = (
    Language("nl", "Dutch", weights=True),
    Language("fa", "Persian", ("farsi",), weights=True),
    Language("el", "Greek", weights=True),
    Language("ro", "Romanian", weights=True),
    Language("hu", "Hungarian", weights=True),
    Language("mk", "Macedonian", weights=True),
)
"""What the open weights know and the DashScope documentation does not list."""

DIALECTS: Final = (
    Language("zh-x-anhui", "Anhui", dialect_of="zh"),
    Language("zh-x-dongbei", "Dongbei", dialect_of="zh"),
    Language("zh-x-fujian", "Fujian", dialect_of="zh"),
    Language("zh-x-gansu", "Gansu", dialect_of="zh"),
    Language("zh-x-guizhou", "Guizhou", dialect_of="zh"),
    Language("zh-x-hebei", "Hebei", dialect_of="zh"),
    Language("zh-x-henan", "Henan", dialect_of="zh"),
    Language("zh-x-hubei", "Hubei", dialect_of="zh"),
    Language("zh-x-hunan", "Hunan", dialect_of="zh"),
    Language("zh-x-jiangxi", "Jiangxi", dialect_of="zh"),
    Language("zh-x-ningxia", "Ningxia", dialect_of="zh"),
    Language("zh-x-shandong", "Shandong", dialect_of="zh"),
    Language("zh-x-shaanxi", "Shaanxi", dialect_of="zh"),
    Language("zh-x-shanxi", "Shanxi", dialect_of="zh"),
    Language("zh-x-sichuan", "Sichuan", ("sichuanese",), dialect_of="zh"),
    Language("zh-x-tianjin", "Tianjin", dialect_of="zh"),
    Language("zh-x-yunnan", "Yunnan", dialect_of="zh"),
    Language("zh-x-zhejiang", "Zhejiang", dialect_of="zh"),
    Language("yue-x-hongkong", "Cantonese (Hong Kong)", dialect_of="yue"),
    Language("yue-x-guangdong", "Cantonese (Guangdong)", dialect_of="yue"),
    Language("wuu", "Wu", ("zh-wuu",), dialect_of="zh"),
    Language("nan", "Minnan", ("zh-nan", "zh-min-nan", "hokkien"), dialect_of="zh"),
)
"""Chinese dialects that the open weights hear and cannot be told to expect."""


def find(text: str) -> Language | None:
    """Return the language that a code, an English name or an alias stands for, or None.

    Case and `_` for `-` do not matter. A longer BCP 47 tag means its language, whatever script or region
    follows (`en-US`, `zh-Hans-CN`, `pt_BR`); `zh-HK` and `zh-MO` mean Cantonese, as speech services use them.
    """
    key = text.strip().lower().replace("_", "-")
    index = _index()
    if key in index:
        return index[key]
    if _TAG.fullmatch(key):
        return index.get(key.partition("-")[0])
    return None


def demand_known(code: str | None, known: Collection[str], param: str) -> None:
    """Refuse to force a language that a model does not know.

    Args:
        code: of the language; None for one that is to be detected.
        known: codes of those that the model knows.
        param: the field, as the client named it.

    Raises:
        InvalidValue: it is not among them.
    """
    if code is not None and code not in known:
        raise InvalidValue(
            f"The model does not know the language {code}; it knows {', '.join(sorted(known))}.", param=param
        )


@dataclass(frozen=True, slots=True)
class Inertia:
    """When a short answer is not believed that it is in another language than the session was."""

    short_speech_s: float
    """Speech above which the answer is always believed."""
    clear_chance: float
    """The model's own probability of the language it named, from which on the evidence is clear."""

    def holds(self, expected: str, detected: str | None, speech_s: float, chance: float | None) -> bool:
        """Tell whether an answer is to be written anew in the session's language.

        Args:
            expected: what the session is in.
            detected: what the answer says; None if it names no language.
            speech_s: speech in its audio.
            chance: the model's probability of `detected`; None if nobody knows.
        """
        if detected in (None, expected) or speech_s >= self.short_speech_s:
            return False
        return chance is None or chance < self.clear_chance


INERTIA: Final = Inertia(short_speech_s=1.0, clear_chance=0.9)
"""Of 120 clips the language was right for 101 after 0.32 s, 111 after 0.48, 115 after 0.64 and 118 after 0.96."""

ESTABLISHED_BY: Final = 2
"""Texts in a row in one language. Speakers who mix languages establish none, and are left alone."""


def established(languages: Sequence[str]) -> str | None:
    """Return the language that a session is in, by those of its texts so far, oldest first; None if in none."""
    last = set(languages[-ESTABLISHED_BY:])
    return last.pop() if len(languages) >= ESTABLISHED_BY and len(last) == 1 else None


_TAG: Final = re.compile(r"[a-z]{2,3}(-[a-z]{4})?(-([a-z]{2}|[0-9]{3}))?")
"""Language, script, region: the parts of a BCP 47 tag that do not change which language is meant."""


@cache
def _index() -> dict[str, Language]:
    return {
        key: language
        for language in (*WIRE_LANGUAGES, *WEIGHTS_ONLY_LANGUAGES, *DIALECTS)
        for key in (language.code, language.name.lower(), *language.aliases)
    }
