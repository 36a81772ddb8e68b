"""From a stored file and the wishes of a client to a transcript: what the HTTP doors for recordings share.

No door recognises anything: each maps its fields onto a `Wish` and a `Transcript` onto its answer. Knows no form and
no wire format.
"""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen3_asr_server.errors import InvalidValue, UnknownModel
from qwen3_asr_server.frontends._state import AppState
from qwen3_asr_server.runtime.media import MediaLimits, open_media
from qwen3_asr_server.runtime.offline import Progress, Recording, no_progress, transcribe
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.languages import find
from qwen3_asr_server.text.transcript import Segment, Transcript

TIME_HEADERS: Final = ("X-Time-Load", "X-Time-Process", "X-Time-Total")
"""Seconds that an answer took: until the model was there, from then on, and in all with the upload."""

TRUNCATED_HEADER: Final = "X-Audio-Truncated"
"""`true` where the file ended before it should. Answers told as events say it in the last one."""

VENDOR_MODEL: Final = re.compile(r"qwen3-asr-flash(-us)?(-\d{4}-\d{2}-\d{2})?(-us)?", re.IGNORECASE)
"""The vendor's names for its model of recordings; they stand for the default model, as its realtime names do."""

AUTO: Final = "auto"
"""What clients write for a language that is to be detected."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants of a recording."""

    model: str
    """By its name in `Services.models`."""
    options: TranscribeOptions
    split_channels: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """A transcript and what it took."""

    transcript: Transcript
    load_s: float
    """Until the model was there."""
    process_s: float
    """From then on."""


async def transcribed(
    state: AppState,
    path: Path,
    wish: Wish,
    progress: Progress = no_progress,
    heard: Callable[[Segment], Awaitable[None]] | None = None,
    limits: MediaLimits | None = None,
) -> Result:
    """Return the transcript of a stored file.

    Args:
        state: the application.
        path: where the file is.
        wish: what is wanted of it.
        progress: told now and then how far it has come; must not block.
        heard: given each segment as soon as it is known.
        limits: what the file may cost, if not the usual.

    Raises:
        ClientError: the file cannot be read, or a wish does not suit the model.
        AsrServerError: there is no room, or recognition failed.
    """
    began = time.monotonic()
    async with _open(state, path, wish, progress, limits) as recording:
        loaded = time.monotonic()
        transcript = await transcribe(recording, heard)
    return Result(transcript, loaded - began, time.monotonic() - loaded)


@asynccontextmanager
async def _open(
    state: AppState, path: Path, wish: Wish, progress: Progress, limits: MediaLimits | None
) -> AsyncIterator[Recording]:
    services = state.services
    async with open_media(path, limits or state.media_limits, split_channels=wish.split_channels) as media:
        await services.room_for(wish.model)
        with services.open_recording(media, wish.options, progress, model=wish.model) as recording:
            await services.pool.loaded()
            yield recording


def truncation_header(transcript: Transcript) -> dict[str, str]:
    """Return the header of an answer about a file that ended before it should; none about others."""
    return {TRUNCATED_HEADER: "true"} if transcript.cut_short else {}


def model_named(services: Services, asked: str, also: frozenset[str] = frozenset()) -> str:
    """Return the model that a client asks for, whatever the case, and also by the name it has on a hub: `Qwen/…`.

    Args:
        services: whose model it is.
        asked: what the client calls it; nothing asks for the default.
        also: further names of the default.

    Raises:
        UnknownModel: there is none of that name.
    """
    if not asked or asked.lower() in also:
        return services.models.default
    known = {name.lower(): name for name in services.models.known}
    for name in (asked.lower(), asked.lower().rpartition("/")[2]):
        if name in known:
            return services.models.resolve(known[name])
    raise UnknownModel(f"There is no such model here, but: {', '.join(services.models.names)}.", param="model")


def language_named(text: str, param: str = "language") -> str | None:
    """Return the code of the language that a client names in a field, None to detect it.

    Raises:
        InvalidValue: it is none.
    """
    if text.lower() in ("", AUTO):
        return None
    language = find(text)
    if language is None:
        raise InvalidValue("There is no such language; see /api/languages.", param=param)
    return language.forced_code


def demand_word_times(services: Services, model: str, param: str) -> None:
    """Raise unless words can be given times.

    Raises:
        InvalidValue: nobody can.
    """
    if not services.info_of(model).word_times:
        raise InvalidValue("This server gives no word times; see WORD_TIMES.", param=param)


def language_name(code: str | None) -> str | None:
    """Return the English name of a language."""
    language = find(code) if code else None
    return language.name if language else code
