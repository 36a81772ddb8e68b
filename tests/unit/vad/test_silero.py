"""The shipped weights are the published ones and are used as their authors mean them to be."""

import importlib.util
import itertools
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.vad import load_vad, silero
from support.speech import clip, conversation, conversation_turns

FRAME = 512


def published_weights() -> Path:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"


def reference_probabilities(samples: np.ndarray) -> Iterator[float]:
    """The published model, one stream, fed as its own wrapper does: 64 old samples, then 512 new ones."""
    session = onnxruntime.InferenceSession(published_weights(), providers=["CPUExecutionProvider"])
    state = np.zeros((2, 1, 128), np.float32)
    padded = np.concatenate((np.zeros(64, np.float32), samples))
    for start in range(0, len(samples) - FRAME + 1, FRAME):
        window = padded[np.newaxis, start : start + 64 + FRAME]
        output, state = session.run(None, {"input": window, "state": state, "sr": np.array(16000, np.int64)})
        yield output.item()


def our_probabilities(samples: np.ndarray) -> Iterator[float]:
    model = silero.SileroVad()
    states = model.new_state()[np.newaxis]
    for start in range(0, len(samples) - FRAME + 1, FRAME):
        probabilities, states = model.score(samples[np.newaxis, start : start + FRAME], states)
        yield probabilities.item()


def test_the_weights_are_the_published_ones() -> None:
    shipped = files("qwen3_asr_server.vad").joinpath("silero_vad.onnx")
    assert shipped.read_bytes() == published_weights().read_bytes()


def test_the_licence_travels_with_them() -> None:
    notice = files("qwen3_asr_server.vad").joinpath("silero_vad.LICENSE").read_text(encoding="utf-8")
    assert notice.startswith("MIT License")
    assert "Silero Team" in notice


@pytest.mark.parametrize("name", ["conf-adminmenu", "queue-holdtime"])
def test_probabilities_are_those_of_the_published_model(name: str) -> None:
    samples = clip(name).samples[: 8 * 16000]
    expected = list(reference_probabilities(samples))
    assert max(expected) - min(expected) > 0.9
    np.testing.assert_allclose(list(our_probabilities(samples)), expected, atol=1e-6, rtol=0)


def test_a_conversation_is_speech_in_its_turns_and_silence_between_them() -> None:
    probabilities = np.array(list(our_probabilities(conversation().samples)))
    times = (np.arange(len(probabilities)) + 0.5) * FRAME / 16000
    turns = conversation_turns()
    inside = [probabilities[(times > turn.start_s) & (times < turn.end_s)] for turn in turns]
    between = [
        probabilities[(times > before.end_s + 0.3) & (times < after.start_s)]
        for before, after in itertools.pairwise(turns)
    ]
    assert all(np.mean(turn > 0.5) > 0.6 for turn in inside)
    assert all(np.all(pause < 0.3) for pause in between)


@pytest.mark.parametrize("weights", ["missing.onnx", "silero_vad.LICENSE"])
def test_weights_that_cannot_be_loaded_are_an_error_at_once(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.setattr(silero, "WEIGHTS", weights)
    with pytest.raises(EngineNotReady) as caught:
        load_vad("silero")
    assert caught.value.message.startswith("the Silero VAD cannot be loaded (")
    assert "/" not in caught.value.message
