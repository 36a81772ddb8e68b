from collections.abc import Callable

import av
import numpy as np
import pytest

from qwen3_asr_server.audio.g711 import Codes, Floats, expand_alaw, expand_mulaw

ALL_CODES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize(("codec", "expand"), [("pcm_mulaw", expand_mulaw), ("pcm_alaw", expand_alaw)])
def test_every_code_is_what_ffmpeg_makes_of_it(codec: str, expand: Callable[[Codes], Floats]) -> None:
    reference = av.CodecContext.create(codec, "r")
    reference.layout, reference.sample_rate = "mono", 8_000
    (frame,) = reference.decode(av.Packet(ALL_CODES.tobytes()))
    samples = expand(ALL_CODES)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples * 32768, frame.to_ndarray()[0])
