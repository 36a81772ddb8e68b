"""The work on one file of a job: fetch it, decode it, have it transcribed, say why not.

    address ──▶ fetched once ──▶ channels that are wanted ──▶ a place among the recordings ──▶ transcript

Nobody waits at a connection, so a server that is full is waited for, and the file meanwhile kept. Knows no store and no
wire format; `jobs` calls it.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from qwen3_asr_server.domain import Samples
from qwen3_asr_server.errors import InvalidValue, Overloaded, ShuttingDown, UnknownModel
from qwen3_asr_server.runtime._job_failures import NobodySpeaks, NoWords
from qwen3_asr_server.runtime.job_results import JobResult
from qwen3_asr_server.runtime.job_values import Claim, JobWish
from qwen3_asr_server.runtime.media import MediaLimits, MediaReader, open_media
from qwen3_asr_server.runtime.offline import Progress, transcribe
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.runtime.sources import SourceLimits, fetched, source_of
from qwen3_asr_server.session.recorded import TranscribeOptions

FULL_AGAIN_S: Final = 2.0
"""How long to wait before a full server is asked again."""


class JobWork:
    """Transcribe files for jobs.

    Args:
        services: who recognises.
        sources: what fetching a file may cost, and where it may come from.
        media: what one file may cost.
    """

    def __init__(self, services: Services, sources: SourceLimits, media: MediaLimits) -> None:
        self._services = services
        self._sources = sources
        self._media = media

    async def __call__(self, claim: Claim, progress: Progress) -> JobResult:
        """Return what was heard in a file.

        Args:
            claim: the file.
            progress: told now and then how far it has come; must not block.

        Raises:
            AsrServerError: there is no transcript; `_job_failures` says why.
        """
        async with fetched(source_of(claim.url), self._sources) as path:
            while True:
                try:
                    return await self._heard(path, claim, progress)
                except ShuttingDown:
                    raise
                except Overloaded:
                    await asyncio.sleep(FULL_AGAIN_S)

    async def _heard(self, path: Path, claim: Claim, progress: Progress) -> JobResult:
        wish, services = claim.wish, self._services
        if wish.model not in services.models.names:
            raise UnknownModel("The server has no longer the model that was asked for.")
        options = TranscribeOptions(language=wish.language, context=wish.context, words=wish.words)
        async with open_media(path, self._media, split_channels=bool(wish.channels)) as media:
            channels = _present(wish, media)
            await services.room_for(wish.model)
            chosen = _Chosen(media, channels)
            with services.open_recording(chosen, options, progress, model=wish.model) as recording:
                await services.pool.loaded()
                transcript = await transcribe(recording)
        if not recording.pieces:
            raise NobodySpeaks("No speech was found in the file.")
        if not transcript.segments:
            raise NoWords("No word was recognised in the file.")
        segments = tuple(replace(segment, channel=channels[segment.channel]) for segment in transcript.segments)
        transcript = replace(transcript, segments=segments, channels=channels)
        return JobResult(claim.form, claim.url, wish, media.kind, channels, transcript)


class _Chosen:
    """Some of the channels of a file."""

    def __init__(self, media: MediaReader, channels: tuple[int, ...]) -> None:
        self._media = media
        self._rows = list(channels)
        self.channels = len(channels)
        self.duration_s = media.duration_s

    @property
    def cut_short(self) -> bool:
        """Whether the file ended before it should."""
        return self._media.cut_short

    async def blocks(self) -> AsyncIterator[Samples]:
        """Yield their audio."""
        async for block in self._media.blocks():
            yield block[self._rows]


def _present(wish: JobWish, media: MediaReader) -> tuple[int, ...]:
    """Return the channels to transcribe, in order; one that the file does not have is left out.

    Raises:
        InvalidValue: it has none of them.
    """
    if not wish.channels:
        return (0,)
    found = tuple(channel for channel in sorted(set(wish.channels)) if channel < media.channels)
    if not found:
        raise InvalidValue(f"The file has {media.channels} channels, and none of those that were asked for.")
    return found
