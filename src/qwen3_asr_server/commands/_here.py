"""An engine in this process, as the command `transcribe` uses it.

Knows no settings: `cli` builds the services and hands them over.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwen3_asr_server.commands._jobs import Wishes
from qwen3_asr_server.commands._screen import Bar
from qwen3_asr_server.commands._transcriber import Abilities, Written
from qwen3_asr_server.text import subtitles

if TYPE_CHECKING:
    from qwen3_asr_server.runtime.media import MediaLimits
    from qwen3_asr_server.runtime.services import Services
    from qwen3_asr_server.text.transcript import Transcript


class Here:
    """Transcribes with services of its own.

    Args:
        services: not started yet.
        limits: what one recording may cost.
    """

    starting: Final = "Starting the engine"

    def __init__(self, services: "Services", limits: "MediaLimits") -> None:
        self._services = services
        self._limits = limits

    async def abilities(self) -> Abilities:
        """Return what the engine can do; it need not be loaded for that."""
        info = self._services.engine_info
        return Abilities(info.name, info.languages, info.context, info.word_times)

    async def start(self) -> None:
        """Load the engine."""
        await self._services.start()

    async def stop(self) -> None:
        """Unload it."""
        await self._services.stop()

    async def written(self, source: Path, wishes: Wishes, bar: Bar) -> Written:
        """Return the transcript of a file."""
        from qwen3_asr_server.runtime.media import open_media
        from qwen3_asr_server.session.recorded import TranscribeOptions

        options = TranscribeOptions(wishes.language, wishes.context, words=wishes.words)
        async with open_media(source, self._limits, split_channels=wishes.channels) as media:
            transcript = await self._services.transcribe(media, options, bar.heard)
        return Written(rendered(transcript, wishes), media.cut_short)


def rendered(transcript: "Transcript", wishes: Wishes) -> str:
    """Return a transcript in the form that was asked for, with a line break at its end; JSON is one line."""
    match wishes.form:
        case "text":
            return subtitles.as_text(transcript)
        case "srt":
            return subtitles.as_srt(transcript)
        case "vtt":
            return subtitles.as_vtt(transcript)
        case "json":
            answer = subtitles.as_json(transcript, channels=wishes.channels)
        case "verbose_json":
            answer = subtitles.as_verbose_json(transcript, words=wishes.words, channels=wishes.channels)
    return json.dumps(answer, ensure_ascii=False) + "\n"
