"""ITU-T G.711: the two companding laws of telephony, 8 bits to float32.

Each code is a sign, a 3-bit exponent and a 4-bit mantissa. Called by `pcm` for WAV files from telephone
systems. There is no encoder here: the server never sends audio.
"""

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def expand_mulaw(codes: Codes) -> Floats:
    """Return μ-law codes (uint8 [n]) as float32 [n] in (-1, 1); the law spans 14 bits."""
    inverted = ~codes
    exponent, mantissa = _split(inverted)
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return _signed(magnitude, negative=(inverted & 0x80) != 0)


def expand_alaw(codes: Codes) -> Floats:
    """Return A-law codes (uint8 [n]) as float32 [n] in (-1, 1); the law spans 13 bits."""
    toggled = codes ^ np.uint8(0x55)
    exponent, mantissa = _split(toggled)
    linear = (mantissa << 4) + 8
    magnitude = np.where(exponent == 0, linear, (linear + 0x100) << np.maximum(exponent - 1, 0))
    return _signed(magnitude, negative=(toggled & 0x80) == 0)


def _split(codes: Codes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    wide = codes.astype(np.int32)
    return (wide >> 4) & 7, wide & 15


def _signed(magnitude: npt.NDArray[np.int32], *, negative: npt.NDArray[np.bool_]) -> Floats:
    return np.where(negative, -magnitude, magnitude).astype(np.float32) / np.float32(32768)
