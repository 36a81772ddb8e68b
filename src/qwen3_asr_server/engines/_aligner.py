"""Word times from Qwen3-ForcedAligner on vLLM: audio and its text in, the place of every word out.

Beside any engine that has no word times of its own. It starts and stops its engine core (`_aligner_core`, imported when
it starts), cuts texts into units, and goes through audio beyond its limit window by window. Made by
`load_aligner`; knows nothing of sessions or settings.
"""

import asyncio
import importlib.util
import logging
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from qwen3_asr_server.audio.mel import HOP_SAMPLES, WINDOW_FRAMES, LogMel, audio_tokens
from qwen3_asr_server.domain import GRID_SAMPLES, SAMPLE_RATE, Samples, Word, samples_of_ms
from qwen3_asr_server.engines._aligner_words import units_of
from qwen3_asr_server.engines._base import AlignerOptions
from qwen3_asr_server.engines._qwen3_checkpoint import known_clip, shown_name
from qwen3_asr_server.engines._vllm_cores import CoreStart, load_core
from qwen3_asr_server.engines._vllm_request import Window
from qwen3_asr_server.errors import EngineError, EngineNotReady
from qwen3_asr_server.text.alignment import SpokenUnit, repaired_times, units_in_share

if TYPE_CHECKING:
    from qwen3_asr_server.engines._aligner_core import AlignerCore

_log = logging.getLogger(__name__)

LANGUAGES: Final = frozenset({"zh", "yue", "en", "de", "fr", "es", "pt", "it", "ru", "ja", "ko"})
LONGEST_S: Final = 60.0
"""Audio of one request. The model itself can tell times up to 400 s; memory is planned for this."""
SAFE_SHARE: Final = 0.8
"""Beyond its limit, words that end later in a window are placed again by the next one. The window's text is
estimated: this is how wrong the estimate may be."""

_BLOCK: Final = SAMPLE_RATE // 50
_KNOWN_TEXT: Final = "please open the door"


class VllmAligner:
    """The forced aligner, see `Aligner`.

    Args:
        options: all are read.
        longest_s: audio of one request, in seconds, at most `LONGEST_S`.
        vllm_arguments: more arguments for vLLM, for tests.
    """

    def __init__(
        self,
        options: AlignerOptions,
        *,
        longest_s: float = LONGEST_S,
        vllm_arguments: dict[str, object] | None = None,
    ) -> None:
        self._options = options
        self._longest_s = longest_s
        self._arguments = vllm_arguments
        self._core: AlignerCore | None = None
        self._front = LogMel()

    @property
    def model(self) -> str:
        """Hub name, or the last part of the folder."""
        return shown_name(self._options.model_path)

    @property
    def languages(self) -> frozenset[str]:
        """Wire codes of the languages it was trained on."""
        return LANGUAGES

    @property
    def dead(self) -> bool:
        """Whether its process has died."""
        return self._core is not None and self._core.dead

    @property
    def core(self) -> "AlignerCore":
        """The running engine core.

        Raises:
            EngineNotReady: not started, or stopped.
        """
        if self._core is None:
            raise EngineNotReady("the aligner is not running")
        return self._core

    async def start(self) -> None:
        """Load the weights and check that a known clip gets times."""
        if self._core is not None:
            return
        if importlib.util.find_spec("vllm") is None:
            raise EngineNotReady("word times need the package 'vllm': install the extra 'vllm'")
        began = time.monotonic()
        self._core = await self._load()
        try:
            words = await self.align(known_clip(), _KNOWN_TEXT, "en")
            if len({word.start for word in words}) < 2:
                raise EngineNotReady("the aligner gives every word of a known clip the same time")
        except BaseException:
            await self.stop()
            raise
        _log.info("the aligner runs", extra={"seconds": round(time.monotonic() - began, 1), "model": self.model})

    async def stop(self) -> None:
        """End its processes; what runs fails. Safe to call twice, or without `start`."""
        core, self._core = self._core, None
        if core is not None:
            await asyncio.to_thread(core.stop)

    async def align(self, audio: Samples, text: str, language: str | None) -> Sequence[Word]:
        """Place the words of a text, see `Aligner.align`."""
        if language is not None and language not in LANGUAGES:
            return ()
        units = units_of(text, language)
        words: list[Word] = []
        begin, limit = 0, self._limit()
        while units:
            window = audio[begin : begin + limit]
            if begin + limit >= len(audio):
                return [*words, *(word.shifted(begin) for word in await self._place(window, units))]
            likely = units_in_share(units, _audible(window) / max(1, _audible(audio[begin:])))
            placed = await self._place(window, units[:likely])
            kept, end = _cut(window, placed)
            words += [word.shifted(begin) for word in placed[:kept]]
            units = units[kept:]
            begin += end
        return words

    async def _place(self, audio: Samples, units: Sequence[SpokenUnit]) -> list[Word]:
        core = self.core
        ids = [core.encode(unit.spoken) for unit in units]
        classes = await core.classes_of(self._windows(audio), ids)
        if len(classes) != 2 * len(units):
            raise EngineError("The words could not be placed.")
        last = len(audio)
        at = [min(samples_of_ms(ms), last) for ms in repaired_times([found * core.class_ms for found in classes])]
        return [Word(unit.shown, *at[2 * n : 2 * n + 2]) for n, unit in enumerate(units)]

    def _windows(self, audio: Samples) -> list[Window]:
        """Return the audio in items of 8 s, which is what the encoder attends to at one go."""
        mel = self._front.whole(audio)
        nonce = secrets.token_hex(12)  # whoever knows a key gets its audio
        windows = []
        for first in range(0, mel.shape[1], WINDOW_FRAMES):
            part = np.ascontiguousarray(mel[:, first : first + WINDOW_FRAMES])
            samples = audio[first * HOP_SAMPLES : (first + part.shape[1]) * HOP_SAMPLES]
            windows.append(Window(f"{nonce}/{first}", part, samples, audio_tokens(part.shape[1])))
        return windows

    def _limit(self) -> int:
        """Return how many samples one request may have."""
        core = self.core
        known_s = (core.classes - 1) * core.class_ms / 1000
        return int(min(self._longest_s, LONGEST_S, known_s) * SAMPLE_RATE) // GRID_SAMPLES * GRID_SAMPLES

    async def _load(self) -> "AlignerCore":
        return await load_core(lambda start: _load_core(self._options, self._arguments, start))


def _load_core(options: AlignerOptions, arguments: dict[str, object] | None, start: CoreStart) -> "AlignerCore":
    """Import vLLM and start it; both block."""
    from qwen3_asr_server.engines import _vllm_environment

    _vllm_environment.prepare()
    from qwen3_asr_server.engines._aligner_core import AlignerCore, AlignerCoreOptions

    return AlignerCore.load(AlignerCoreOptions(options.model_path, options.dtype, arguments), start)


def _cut(window: Samples, placed: Sequence[Word]) -> tuple[int, int]:
    """Return how many words of a window to keep, and where the next one begins: in a pause, as far as there is one."""
    safe = [n for n, word in enumerate(placed[:-1]) if word.end <= SAFE_SHARE * len(window)]
    if not safe:
        return 0, len(window) // 2  # mostly silence
    late = [n for n in safe if placed[n].end >= len(window) // 3] or safe
    last = max(late, key=lambda n: placed[n + 1].start - placed[n].end)
    first, upto = ((placed[n].start + placed[n].end) // 2 for n in (last, last + 1))
    blocks = window[first : max(upto, first + GRID_SAMPLES)]
    levels = np.abs(blocks[: len(blocks) // _BLOCK * _BLOCK]).reshape(-1, _BLOCK).max(axis=1)
    quiet = np.flatnonzero(levels == levels.min())
    cut = first + int(quiet[len(quiet) // 2]) * _BLOCK
    return last + 1, max(GRID_SAMPLES, cut // GRID_SAMPLES * GRID_SAMPLES)


def _audible(audio: Samples) -> int:
    """Return in how many samples, of whole 20 ms, something is heard: a tenth of the loudest level or more."""
    blocks = audio[: len(audio) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    levels = np.sqrt(np.mean(blocks**2, axis=1))
    return int(np.count_nonzero(levels >= 0.1 * levels.max(initial=0.0))) * _BLOCK


ALIGNER = VllmAligner
