"""Silero VAD 6 on onnxruntime, many streams in one call.

The weights are `silero_vad.onnx` beside this file, copied unchanged from the wheel `silero-vad` (MIT, see
`silero_vad.LICENSE`). The network hears each frame together with the last 64 samples before it; they are part
of the stream's state here. Knows nothing about sessions or threads; the batcher calls it.
"""

from importlib.resources import files
from typing import Final

import numpy as np
import onnxruntime

from qwen3_asr_server.domain import FRAME_SAMPLES, SAMPLE_RATE
from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.vad._base import Floats

WEIGHTS: Final = "silero_vad.onnx"
CONTEXT_SAMPLES: Final = 64
LSTM_WIDTH: Final = 128
LSTM_FLOATS: Final = 2 * LSTM_WIDTH


class SileroVad:
    """The detector, loaded and tried once.

    A stream's state is float32 [320]: hidden [128] and cell [128] of the LSTM, then the last 64 samples.

    Raises:
        EngineNotReady: the weights are missing or broken.
    """

    name = "silero"

    def __init__(self) -> None:
        self._rate = np.array(SAMPLE_RATE, np.int64)
        try:
            weights = files(__package__).joinpath(WEIGHTS).read_bytes()
            self._session = onnxruntime.InferenceSession(
                weights, _session_options(), providers=["CPUExecutionProvider"]
            )
            self.score(np.zeros((1, FRAME_SAMPLES), np.float32), self.new_state()[np.newaxis])
        except Exception as problem:  # onnxruntime's errors have no common base but this one
            raise EngineNotReady(f"the Silero VAD cannot be loaded ({type(problem).__name__})") from problem

    def new_state(self) -> Floats:
        """Return the state of a stream that has heard nothing: float32 [320], zeros."""
        return np.zeros(LSTM_FLOATS + CONTEXT_SAMPLES, np.float32)

    def score(self, frames: Floats, states: Floats) -> tuple[Floats, Floats]:
        """Score one frame of each of `b` streams.

        Args:
            frames: float32 [b, 512], mono, 16 kHz, in [-1, 1].
            states: float32 [b, 320].

        Returns:
            Speech probabilities, float32 [b] in [0, 1], and the new states, float32 [b, 320].
        """
        rows = len(frames)
        lstm = states[:, :LSTM_FLOATS].reshape(rows, 2, LSTM_WIDTH).transpose(1, 0, 2)
        heard = np.concatenate((states[:, LSTM_FLOATS:], frames), axis=1)
        inputs = {"input": heard, "state": np.ascontiguousarray(lstm), "sr": self._rate}
        probabilities, lstm = self._session.run(None, inputs)
        lstm = lstm.transpose(1, 0, 2).reshape(rows, LSTM_FLOATS)
        return probabilities[:, 0], np.concatenate((lstm, heard[:, -CONTEXT_SAMPLES:]), axis=1)


def _session_options() -> onnxruntime.SessionOptions:
    """Return options for one busy thread: batches are the parallelism here, and idle threads must not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


VAD = SileroVad
