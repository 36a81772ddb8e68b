"""The log-mel features that Qwen3-ASR hears, each 10 ms of audio computed once however often it is decoded.

A frame is final once its 400 samples have all arrived; only the frame at the edge leans on mirrored audio. The
model's floor, 8 decades of power below the loudest frame of a clip, can rise until the clip ends. So a full window
of 8 s, which is one attention window of the encoder, keeps the floor known when it closed and can stay in the
engine's caches; a decode that must equal that of the whole clip asks for the windows whose floor rose since.

It does not know prompts, requests or caches. The Qwen3-ASR engines are its callers. Numpy only, and without matrix
products: a row of those changes in its last bits with the number of rows, and they would start threads.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.domain import SAMPLE_RATE, Samples

Features = npt.NDArray[np.float32]
"""float32 [128, frames]: one column for each 10 ms."""

MELS: Final = 128
HOP_SAMPLES: Final = 160
"""10 ms: one frame."""
FFT_SAMPLES: Final = 400
WINDOW_FRAMES: Final = 800
"""8 s, 104 audio tokens: what the encoder attends to at one go."""
MIN_SAMPLES: Final = 8_000
"""0.5 s: shorter clips are filled up with silence, as the model's own front end does."""

_HALF: Final = FFT_SAMPLES // 2
_CHUNK_FRAMES: Final = 100
_CHUNK_TOKENS: Final = 13
_SILENCE: Final = -10.0
"""Decimal logarithm of the least power that counts."""
_RANGE: Final = 8.0
"""Decades of power between the loudest frame of a clip and its floor."""


def audio_tokens(frames: int) -> int:
    """Return how many tokens the encoder makes of an audio item.

    It takes chunks of 100 frames on their own, and each of its three convolutions halves a chunk, rounding up.

    Args:
        frames: mel frames of the item, not negative.
    """
    chunks, rest = divmod(frames, _CHUNK_FRAMES)
    return chunks * _CHUNK_TOKENS + -(-rest // 8)


def mel_filters() -> npt.NDArray[np.float64]:
    """Return the triangular filters of Slaney's scale from 0 to 8 kHz, each of area 1.

    Returns:
        float64 [128, 201]: the weight of each bin of the power spectrum in each band.
    """
    linear_mels, decay = 15.0, np.log(6.4) / 27.0  # 1000 Hz is 15 mel; logarithmic above, 66.7 Hz a mel below
    highest = linear_mels + np.log(8.0) / decay
    mels = np.linspace(0.0, highest, MELS + 2)
    edges = np.where(mels < linear_mels, mels * 200.0 / 3.0, 1000.0 * np.exp(decay * (mels - linear_mels)))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, FFT_SAMPLES // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters: npt.NDArray[np.float64] = np.maximum(triangles, 0.0) * (2.0 / (high - low))
    return filters


class LogMel:
    """The front end itself: stateless, safe to share between streams.

    Args:
        min_samples: shorter clips are filled up with silence to this length, more than 200 and at most 128,000.
    """

    def __init__(self, min_samples: int = MIN_SAMPLES) -> None:
        assert _HALF < min_samples <= WINDOW_FRAMES * HOP_SAMPLES
        self._min_samples = min_samples
        self._taper = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)).astype(np.float32)
        filters = mel_filters()
        bands, self._bins = np.nonzero(filters)
        self._weights = filters[bands, self._bins, None].astype(np.float32)
        self._first_of_band = np.searchsorted(bands, np.arange(MELS))

    def frames(self, samples: int) -> int:
        """Return how many frames a clip of that many samples has; what is left of 10 ms has none."""
        return max(samples, self._min_samples) // HOP_SAMPLES

    def whole(self, samples: Samples) -> Features:
        """Return the features of a finished clip, as the model's own front end gives them.

        Args:
            samples: float32 [n], mono, 16 kHz, in [-1, 1].

        Returns:
            float32 [128, frames(n)], not padded to whole chunks.
        """
        powers = self.log_powers(samples, 0, self.frames(len(samples)))
        return _scaled(np.maximum(powers, powers.max() - np.float32(_RANGE)))

    def log_powers(self, samples: Samples, first: int, upto: int) -> Features:
        """Return the decimal logarithm of the power in each band, before the floor.

        A frame's bits depend on its samples only, not on which others are computed beside it.

        Args:
            samples: float32 [n], the clip from its start; both its ends are mirrored.
            first: first frame.
            upto: one past the last frame, at most `frames(n)`.

        Returns:
            float32 [128, upto - first], at least -10.
        """
        powers = np.empty((MELS, upto - first), np.float32)
        if first == upto:
            return powers
        if len(samples) < self._min_samples:
            samples = np.pad(samples, (0, self._min_samples - len(samples)))
        start, end = first * HOP_SAMPLES - _HALF, (upto - 1) * HOP_SAMPLES + _HALF
        # One sample more, because a mirror does not repeat the sample it stands at.
        heard = samples[max(start, 0) : end + 1]
        if start < 0 or end > len(samples):
            heard = np.pad(heard, (max(-start, 0), max(end - len(samples), 0)), mode="reflect")
        slices = np.lib.stride_tricks.sliding_window_view(heard, FFT_SAMPLES)[::HOP_SAMPLES]
        for at in range(0, upto - first, _CHUNK_FRAMES):  # at a time what fits into the processor's cache
            columns = slice(at, min(at + _CHUNK_FRAMES, upto - first))
            powers[:, columns] = self._log_bands(slices[columns])
        return powers

    def _log_bands(self, slices: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
        """Return the logarithm of the power in each band, [128, n], of n stretches of 400 samples."""
        spectrum = np.fft.rfft(slices * self._taper)
        power = (spectrum.real**2 + spectrum.imag**2).T
        bands = np.add.reduceat(power[self._bins] * self._weights, self._first_of_band, axis=0)
        logarithms: npt.NDArray[np.floating] = np.log10(np.maximum(bands, 10.0**_SILENCE))
        return logarithms


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Up to 8 s of a piece, counted from its start: one audio item of a prompt."""

    index: int
    mel: Features
    """float32 [128, frames]; nobody may change it."""
    closed: bool
    """All 800 frames are there and final; with the same index and floor, a piece always gives the same features."""
    floor: float
    """The floor that was applied, as a decimal logarithm of power."""

    @property
    def frames(self) -> int:
        """1 to 800."""
        return int(self.mel.shape[1])

    @property
    def tokens(self) -> int:
        """Audio tokens it takes in a prompt, 1 to 104."""
        return audio_tokens(self.frames)


class IncrementalMel:
    """The windows of one piece while it grows; holds 400 kB, and as much again for each closed window.

    Args:
        front: shared by all pieces.
    """

    def __init__(self, front: LogMel) -> None:
        self._front = front
        self._closed: list[Window] = []
        self._closed_peak = _SILENCE
        self._open: Features = np.empty((MELS, WINDOW_FRAMES), np.float32)
        self._final = 0
        self._frames = 0
        self._final_peak = _SILENCE
        self._peak = _SILENCE

    @property
    def floor(self) -> float:
        """The floor of the whole piece as far as it was fed, a decimal logarithm of power."""
        return self._peak - _RANGE

    def feed(self, audio: Samples) -> None:
        """Take the piece so far; only frames that are new or were not final are computed.

        Args:
            audio: float32 [n], mono, 16 kHz, in [-1, 1], from the start of the piece. It begins with what was
                fed before, or is the beginning of that; where they part, feed first what they share.
        """
        final = max(0, (len(audio) - _HALF) // HOP_SAMPLES + 1)
        if final < self._final:
            self._take_back(final)
        self._frames = self._front.frames(len(audio))
        powers = self._front.log_powers(audio, self._final, self._frames)
        self._final_peak = max(self._final_peak, float(powers[:, : final - self._final].max(initial=_SILENCE)))
        self._peak = max(self._final_peak, float(powers.max(initial=_SILENCE)))
        self._append(powers, final)

    def windows(self) -> list[Window]:
        """Return the closed windows, each as it was when it closed, and the open one."""
        return [*self._closed, *self._tail()]

    def lifted(self) -> list[int]:
        """Return the closed windows that `whole` would give differently, because the floor rose into them."""
        return [window.index for window in self._closed if _rises_into(self.floor, window)]

    def exact_windows(self) -> list[Window]:
        """Return the windows that together equal `LogMel.whole` of the piece so far.

        A closed window that the floor did not rise into is the one of `windows`, with the floor it had.
        """
        floor = self.floor
        closed = [
            Window(window.index, np.maximum(window.mel, _scaled_floor(floor)), True, floor)
            if _rises_into(floor, window)
            else window
            for window in self._closed
        ]
        return [*closed, *self._tail()]

    def _tail(self) -> list[Window]:
        """Return the open window, if it has a frame."""
        frames = self._frames - len(self._closed) * WINDOW_FRAMES
        if frames == 0:
            return []
        floor = self.floor
        return [Window(len(self._closed), _floored(self._open[:, :frames], floor), False, floor)]

    def _append(self, powers: Features, final: int) -> None:
        """Store the frames from `self._final` on, closing each window whose frames are all final."""
        at = self._final
        while powers.shape[1]:
            begin = at - len(self._closed) * WINDOW_FRAMES
            fits = powers[:, : WINDOW_FRAMES - begin]
            self._open[:, begin : begin + fits.shape[1]] = fits
            powers = powers[:, fits.shape[1] :]
            at += fits.shape[1]
            if begin + fits.shape[1] == WINDOW_FRAMES and at <= final:
                floor = self._final_peak - _RANGE
                self._closed.append(Window(len(self._closed), _floored(self._open, floor), True, floor))
                self._closed_peak = max(self._closed_peak, float(self._open.max()))
        self._final = final

    def _take_back(self, final: int) -> None:
        """Forget the frames from `final` on; all of them where a closed window or its floor rests on those."""
        kept = final - len(self._closed) * WINDOW_FRAMES
        if kept >= 0:
            self._final_peak = max(self._closed_peak, float(self._open[:, :kept].max(initial=_SILENCE)))
        if kept < 0 or any(window.floor > self._final_peak - _RANGE for window in self._closed):
            self._closed = []
            self._closed_peak = self._final_peak = _SILENCE
            final = 0
        self._final = final


def _scaled(powers: Features) -> Features:
    return (powers + np.float32(4.0)) / np.float32(4.0)


def _scaled_floor(floor: float) -> np.float32:
    return (np.float32(floor) + np.float32(4.0)) / np.float32(4.0)


def _floored(powers: Features, floor: float) -> Features:
    return _scaled(np.maximum(powers, np.float32(floor)))


def _rises_into(floor: float, window: Window) -> bool:
    return bool(window.mel.min() < _scaled_floor(floor))
