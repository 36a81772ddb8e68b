"""Sessions that are driven as fast as the engine answers."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _dictation import ReferenceSpeaker, Speaker, speech_of
from _full_shape import AUDIO_SHAPE, TEXT_SHAPE, write_full_shape
from _work import Meter

from qwen3_asr_server.domain import Hypothesis, Samples, StepKind

SECOND = 16_000


class Vllm:
    async def generate(self) -> AsyncGenerator[None, None]:
        yield None


@dataclass
class Stream:
    """Hears, and says how long it has heard."""

    heard: list[tuple[StepKind, float]]
    answer: tuple[int, ...] = (1, 2, 3)
    skips: bool = False
    closed: list[bool] = field(default_factory=list)

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        self.heard.append((kind, len(audio) / SECOND))
        return None if self.skips and kind is not StepKind.FINAL else Hypothesis("text", final=True)

    async def close(self) -> None:
        self.closed.append(True)


def speaker(heard: list[tuple[StepKind, float]], probability: Any = 1.0, seconds: int = 8) -> Speaker:
    audio = np.ones(seconds * SECOND, np.float32) * np.float32(0.1)
    speech = np.broadcast_to(np.float32(probability), (len(audio) // 512,))
    return Speaker(3, audio, np.array(speech), lambda: Stream(heard), Meter(Vllm()))


async def test_speech_without_end_is_heard_in_pieces() -> None:
    heard: list[tuple[StepKind, float]] = []
    who = speaker(heard)
    for _ in range(32):
        await who.advance(2.0)
    await who.finish()
    assert who.at_s == 64
    assert max(seconds for _, seconds in heard) <= 28
    finals = [seconds for kind, seconds in heard if kind is StepKind.FINAL]
    assert len(finals) == 3
    assert sum(finals) == pytest.approx(64, abs=2), "all of it, and the overlap of two forced cuts"
    assert sum(kind is StepKind.PARTIAL for kind, _ in heard) >= 30
    assert [(step.session, step.answer) for step in who.meter.steps] == [(3, 3)] * len(heard)


async def test_a_pause_is_decoded_as_a_candidate() -> None:
    heard: list[tuple[StepKind, float]] = []
    probabilities = np.ones(8 * SECOND // 512, np.float32)
    probabilities[60:75] = 0
    who = speaker(heard, probabilities)
    await who.advance(4.0)
    assert [kind for kind, _ in heard] == [StepKind.CANDIDATE, StepKind.PARTIAL]


async def test_a_step_that_is_left_out_is_no_answer() -> None:
    heard: list[tuple[StepKind, float]] = []
    who = speaker(heard)
    who.open_stream = lambda: Stream(heard, skips=True)
    await who.advance(2.0)
    await who.finish()
    assert [kind for kind, _ in heard] == [StepKind.PARTIAL, StepKind.FINAL]


class Reference:
    def __init__(self) -> None:
        self.heard: list[float] = []

    async def step(self, audio: Samples) -> str:
        self.heard.append(len(audio) / SECOND)
        return ""


async def test_the_reference_hears_everything_each_time() -> None:
    stream: Any = Reference()
    who = ReferenceSpeaker(0, np.zeros(5 * SECOND, np.float32), stream, Meter(Vllm()))
    for _ in range(3):
        await who.advance(2.0)
    assert stream.heard == [2, 4, 5]


class Loudness:
    name = "loudness"

    def new_state(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def score(self, frames: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return frames.max(axis=1), states


def test_frames_are_scored_for_all_at_once() -> None:
    audios = [np.repeat(np.float32([0, 1, 0]), 512), np.repeat(np.float32([1, 0, 1]), 512)]
    assert [list(speech) for speech in speech_of(Loudness(), audios)] == [[0, 1, 0], [1, 0, 1]]


def test_the_full_shape_is_a_folder_without_weights(tmp_path: Path) -> None:
    write_full_shape(tmp_path)
    thinker = json.loads((tmp_path / "config.json").read_text())["thinker_config"]
    assert thinker["audio_config"].items() >= AUDIO_SHAPE.items()
    assert thinker["text_config"].items() >= TEXT_SHAPE.items()
    assert sum(thinker["text_config"]["rope_scaling"]["mrope_section"]) == TEXT_SHAPE["head_dim"] // 2
    assert (tmp_path / "vocab.json").exists()
    assert not list(tmp_path.glob("*.safetensors"))
