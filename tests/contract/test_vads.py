"""What every voice activity detector promises, whatever it is made of."""

import numpy as np
import pytest

from qwen3_asr_server.domain import FRAME_SAMPLES
from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.vad import load_vad, vad_names
from qwen3_asr_server.vad._base import Floats, VadModel
from support.energy_vad import EnergyVad
from support.speech import clip

CLIPS = ("conf-adminmenu", "queue-holdtime", "conf-enteringno")


@pytest.fixture(scope="module", params=[*vad_names(), "energy"])
def vad(request: pytest.FixtureRequest) -> VadModel:
    return EnergyVad() if request.param == "energy" else load_vad(request.param)


def frames_of(name: str, count: int = 60) -> Floats:
    return clip(name).samples[: count * FRAME_SAMPLES].reshape(count, FRAME_SAMPLES)


def score_alone(vad: VadModel, frames: Floats) -> Floats:
    states = vad.new_state()[np.newaxis]
    probabilities = []
    for frame in frames:
        probability, states = vad.score(frame[np.newaxis], states)
        probabilities.append(probability)
    return np.concatenate(probabilities)


def test_shapes_types_and_range(vad: VadModel) -> None:
    frames = np.stack([frames_of(name)[40] for name in CLIPS])
    states = np.stack([vad.new_state() for _ in CLIPS])
    frames_before, states_before = frames.copy(), states.copy()
    probabilities, after = vad.score(frames, states)
    assert probabilities.shape == (3,)
    assert after.shape == states.shape
    assert probabilities.dtype == after.dtype == states.dtype == np.float32
    assert np.all((probabilities >= 0) & (probabilities <= 1))
    np.testing.assert_array_equal(frames, frames_before)
    np.testing.assert_array_equal(states, states_before)


def test_results_are_not_views_of_buffers_that_the_next_call_overwrites(vad: VadModel) -> None:
    frames = frames_of(CLIPS[0])
    states = vad.new_state()[np.newaxis]
    first = vad.score(frames[40:41], states)
    kept = [array.copy() for array in first]
    vad.score(np.zeros((1, FRAME_SAMPLES), np.float32), states)
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_batch_of_streams_scores_as_each_alone(vad: VadModel) -> None:
    streams = [frames_of(name) for name in CLIPS]
    states = np.stack([vad.new_state() for _ in streams])
    together = []
    for frames in np.stack(streams, axis=1):
        probabilities, states = vad.score(frames, states)
        together.append(probabilities)
    alone = [score_alone(vad, frames) for frames in streams]
    np.testing.assert_allclose(np.stack(together, axis=1), np.stack(alone), atol=1e-6, rtol=0)


def test_silence_is_not_speech(vad: VadModel) -> None:
    assert np.all(score_alone(vad, np.zeros((60, FRAME_SAMPLES), np.float32)) < 0.1)


@pytest.mark.parametrize("name", CLIPS)
def test_human_speech_is_speech(vad: VadModel, name: str) -> None:
    probabilities = score_alone(vad, frames_of(name))
    assert np.median(probabilities[15:]) > 0.5
    assert probabilities.max() > 0.9


def test_a_new_state_has_heard_nothing(vad: VadModel) -> None:
    frames = frames_of(CLIPS[0])
    first = score_alone(vad, frames)
    np.testing.assert_array_equal(score_alone(vad, frames), first)
    vad.new_state()[...] = 1
    np.testing.assert_array_equal(score_alone(vad, frames), first)


def test_every_module_is_found_under_its_name() -> None:
    assert "silero" in vad_names()
    assert [load_vad(name).name for name in vad_names()] == vad_names()


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(EngineNotReady, match=r"no VAD is named 'energy'; known VADs: .*silero"):
        load_vad("energy")
