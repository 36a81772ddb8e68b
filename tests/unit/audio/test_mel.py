import json
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.audio.mel import (
    HOP_SAMPLES,
    MELS,
    MIN_SAMPLES,
    WINDOW_FRAMES,
    IncrementalMel,
    LogMel,
    Window,
    audio_tokens,
    mel_filters,
)
from qwen3_asr_server.domain import GRID_SAMPLES, SAMPLE_RATE, Samples
from support import speech

DATA = Path(__file__).resolve().parents[2] / "data" / "mel"
CLIPS = json.loads((DATA / "reference.json").read_text(encoding="utf-8"))
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES

FRONT = LogMel()


def reference(name: str) -> npt.NDArray[np.float32]:
    with np.load(DATA / "reference.npz") as arrays:
        return arrays[name]


def clip(name: str) -> Samples:
    """The audio that `scripts/make_mel_reference.py` gave to the model's own front end."""
    stem = Path(CLIPS[name]["file"]).stem
    found = speech.long_clip(stem) if "paragraphs" in CLIPS[name]["file"] else speech.clip(stem)
    return found.samples[: CLIPS[name]["samples"]]


def fed(audio: Samples, *cuts: int) -> IncrementalMel:
    """A piece that was fed up to each cut in turn, and at last whole."""
    piece = IncrementalMel(FRONT)
    for upto in (*cuts, len(audio)):
        piece.feed(audio[:upto])
    return piece


def noise(seed: int, *levels: float, seconds: float = 1.0) -> Samples:
    """Noise whose loudness changes from one stretch to the next; a level of 0 is digital silence."""
    rng = np.random.default_rng(seed)
    stretch = round(seconds * SAMPLE_RATE)
    return np.concatenate([level * rng.uniform(-1, 1, stretch) for level in levels]).astype(np.float32)


def joined(windows: list[Window]) -> npt.NDArray[np.float32]:
    return np.concatenate([window.mel for window in windows], axis=1)


def test_the_filters_are_those_of_the_model() -> None:
    np.testing.assert_allclose(mel_filters(), reference("filters"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CLIPS)
def test_a_whole_clip_has_the_features_that_the_model_was_trained_on(name: str) -> None:
    features = FRONT.whole(clip(name))
    assert features.dtype == np.float32
    assert features.shape == (MELS, CLIPS[name]["total_frames"])
    np.testing.assert_allclose(features[:, CLIPS[name]["frames"]], reference(name), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CLIPS)
def test_a_piece_fed_every_80_ms_ends_with_the_features_of_the_whole_clip(name: str) -> None:
    audio = clip(name)
    windows = fed(audio, *range(0, len(audio), GRID_SAMPLES)).exact_windows()
    np.testing.assert_array_equal(joined(windows), FRONT.whole(audio))


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(0, 50), (1, 50), (7_999, 50), (8_000, 50), (8_159, 50), (8_160, 51), (128_000, 800), (128_160, 801)],
)
def test_frames_of_a_clip(samples: int, frames: int) -> None:
    assert FRONT.frames(samples) == frames
    assert FRONT.whole(np.zeros(samples, np.float32)).shape == (MELS, frames)


@given(st.integers(7, 400))
def test_a_grid_step_is_eight_frames(steps: int) -> None:
    assert FRONT.frames(steps * GRID_SAMPLES) == 8 * steps


def test_short_clips_can_be_filled_up_to_the_grid() -> None:
    audio = noise(1, 0.3)[:4_000]
    front = LogMel(min_samples=7 * GRID_SAMPLES)
    np.testing.assert_array_equal(front.whole(audio), FRONT.whole(np.pad(audio, (0, 7 * GRID_SAMPLES - 4_000))))
    assert audio_tokens(front.frames(4_000)) == audio_tokens(FRONT.frames(4_000)) == 7


def test_digital_silence_has_one_value() -> None:
    assert np.unique(FRONT.whole(np.zeros(SAMPLE_RATE, np.float32))).tolist() == [pytest.approx(-1.5)]


@given(first=st.integers(0, 99), count=st.integers(1, 60), seed=st.integers(0, 9))
def test_the_bits_of_a_frame_do_not_depend_on_its_company(first: int, count: int, seed: int) -> None:
    audio = noise(seed, 0.2)
    upto = min(first + count, 100)
    np.testing.assert_array_equal(FRONT.log_powers(audio, first, upto), FRONT.log_powers(audio, 0, 100)[:, first:upto])


def test_audio_tokens_are_those_of_the_model() -> None:
    golden = json.loads((DATA / "audio_tokens.json").read_text(encoding="utf-8"))
    assert [audio_tokens(frames) for frames in range(len(golden))] == golden


@given(st.integers(0, 12_000_000))
def test_audio_tokens_are_what_three_convolutions_leave(frames: int) -> None:
    def convolved(length: int) -> int:
        kernel, stride, padding = 3, 2, 1
        return (length + 2 * padding - kernel) // stride + 1 if length else 0

    chunks = [100] * (frames // 100 % 50) + [frames % 100]
    whole_fifties = frames // 5_000 * 650
    assert audio_tokens(frames) == whole_fifties + sum(convolved(convolved(convolved(chunk))) for chunk in chunks)


@given(seed=st.integers(0, 3), steps=st.lists(st.integers(1, 230), min_size=1, max_size=6), data=st.data())
@settings(max_examples=40)
def test_the_steps_of_a_piece_do_not_change_its_final_windows(seed: int, steps: list[int], data: st.DataObject) -> None:
    audio = noise(seed, *data.draw(st.lists(st.sampled_from([0.0, 0.001, 0.1, 0.9]), min_size=1, max_size=20)))
    piece = fed(audio, *sorted(min(step * GRID_SAMPLES, len(audio)) for step in steps))
    windows = piece.exact_windows()
    np.testing.assert_array_equal(joined(windows), FRONT.whole(audio))
    assert [window.index for window in windows] == list(range(len(windows)))
    assert all(window.frames == WINDOW_FRAMES for window in windows[:-1])
    assert {
        window.index for window in windows if not np.array_equal(window.mel, piece.windows()[window.index].mel)
    } == {*piece.lifted()}


@pytest.mark.parametrize(
    ("samples", "closed", "tail"),
    [
        (0, 0, 50),
        (WINDOW_SAMPLES - GRID_SAMPLES, 0, 792),
        (WINDOW_SAMPLES, 0, 800),  # its last frame still leans on mirrored audio
        (WINDOW_SAMPLES + 39, 0, 800),
        (WINDOW_SAMPLES + 40, 1, None),
        (WINDOW_SAMPLES + GRID_SAMPLES, 1, 8),
        (2 * WINDOW_SAMPLES + GRID_SAMPLES, 2, 8),
        (28 * SAMPLE_RATE, 3, 400),
    ],
)
def test_a_window_closes_once_its_last_frame_is_final(samples: int, closed: int, tail: int | None) -> None:
    windows = fed(noise(2, *[0.1] * 28)[:samples]).windows()
    assert [window.closed for window in windows] == [True] * closed + [False] * (tail is not None)
    assert [(window.frames, window.tokens) for window in windows[:closed]] == [(800, 104)] * closed
    assert tail is None or (windows[-1].frames, windows[-1].tokens) == (tail, audio_tokens(tail))


def test_a_closed_window_stays_as_it_was_when_the_floor_rises() -> None:
    quiet, loud = noise(3, *[0.01] * 9), noise(4, 0.9)
    audio = np.concatenate([quiet, np.zeros_like(loud), loud])
    piece = fed(quiet)
    frozen = piece.windows()[0]
    assert piece.lifted() == []
    piece.feed(audio)
    assert piece.windows()[0] is frozen
    assert frozen.floor < piece.floor == piece.windows()[1].floor


def test_a_final_reissues_only_the_windows_that_the_floor_rose_into() -> None:
    silent, steady, loud = noise(5, *[0.001, 0.0] * 4), noise(6, *[0.5] * 8), noise(7, 0.9)
    audio = np.concatenate([silent, steady, loud])
    piece = fed(audio, WINDOW_SAMPLES + GRID_SAMPLES, 2 * WINDOW_SAMPLES + GRID_SAMPLES)
    assert piece.lifted() == [0]
    kept, exact = piece.windows(), piece.exact_windows()
    assert (exact[0].index, exact[0].closed, exact[0].floor) == (0, True, piece.floor)
    assert kept[0].floor < kept[1].floor < piece.floor
    assert exact[1] is kept[1]
    assert exact[2].floor == piece.floor
    np.testing.assert_array_equal(joined(exact), FRONT.whole(audio))
    assert piece.windows()[0] is kept[0]


@pytest.mark.parametrize("cuts", [[], [WINDOW_SAMPLES + GRID_SAMPLES]], ids=["closing now", "closed before"])
def test_the_mirrored_edge_lifts_a_floor_only_as_long_as_it_is_the_edge(cuts: list[int]) -> None:
    audio = noise(8, *[0.001, 0.0] * 5)
    at = WINDOW_SAMPLES + SAMPLE_RATE
    tone = 0.5 * np.cos(np.arange(200) * 2 * np.pi * 500 / SAMPLE_RATE)
    audio[at - 200 : at] = tone[::-1]
    audio[at : at + 40] = -tone[:40]  # the mirror expected the opposite
    piece = fed(audio[:at], *cuts)
    mirrored = piece.floor
    np.testing.assert_array_equal(joined(piece.exact_windows()), FRONT.whole(audio[:at]))
    piece.feed(audio)
    assert piece.floor < mirrored
    np.testing.assert_array_equal(joined(piece.exact_windows()), FRONT.whole(audio))


@pytest.mark.parametrize("samples", [0, 8_000, 8_039, 8_040, WINDOW_SAMPLES, WINDOW_SAMPLES + 40])
def test_feeding_nothing_new_changes_nothing(samples: int) -> None:
    audio = noise(16, *[0.1] * 9)[:samples]
    piece = fed(audio, samples, samples)
    np.testing.assert_array_equal(joined(piece.windows()), FRONT.whole(audio))


def test_windows_handed_out_never_change() -> None:
    audio = noise(9, *[0.1, 0.3] * 9)
    piece = IncrementalMel(FRONT)
    handed: list[tuple[Window, npt.NDArray[np.float32]]] = []
    for upto in (12, 130_000, 96_000, 140_000, len(audio), 200_000):
        piece.feed(audio[:upto])
        handed += [(window, window.mel.copy()) for window in (*piece.windows(), *piece.exact_windows())]
    for window, mel in handed:
        np.testing.assert_array_equal(window.mel, mel)


@given(
    seed=st.integers(0, 3),
    levels=st.lists(st.sampled_from([0.0, 0.01, 0.9]), min_size=9, max_size=18),
    cuts=st.lists(
        st.builds(
            lambda steps, rest: steps * GRID_SAMPLES + rest, st.integers(0, 230), st.sampled_from([0, 39, 40, 999])
        ),
        min_size=1,
        max_size=6,
    ),
)
@settings(max_examples=40)
def test_a_piece_may_grow_and_shrink_off_the_grid(seed: int, levels: list[float], cuts: list[int]) -> None:
    audio = noise(seed, *levels)
    piece = IncrementalMel(FRONT)
    for upto in cuts:
        piece.feed(audio[:upto])
        np.testing.assert_array_equal(joined(piece.exact_windows()), FRONT.whole(audio[:upto]))


@pytest.mark.parametrize(
    ("levels", "again_frames"),
    [
        ([0.5, 0.0] * 4 + [0.1] * 12, 1),
        ([0.001, 0.0] * 4 + [0.1] * 10 + [0.9] * 2, 1_800),  # the first window rests on what is taken back
    ],
    ids=["loud at first", "loud at last"],
)
def test_a_piece_shrinks_to_what_it_would_have_been(levels: list[float], again_frames: int) -> None:
    audio = noise(15, *levels)
    shorter = audio[: 18 * SAMPLE_RATE]
    front = Counting()
    piece = IncrementalMel(front)
    piece.feed(audio)
    front.computed = 0
    piece.feed(shorter)
    assert front.computed == again_frames
    np.testing.assert_array_equal(joined(piece.exact_windows()), FRONT.whole(shorter))
    assert piece.lifted() == []


class Counting(LogMel):
    """A front end that counts the frames it computes."""

    computed = 0

    def log_powers(self, samples: Samples, first: int, upto: int) -> npt.NDArray[np.float32]:
        self.computed += upto - first
        return super().log_powers(samples, first, upto)


@pytest.mark.parametrize("step_samples", [GRID_SAMPLES, 5 * GRID_SAMPLES, 25 * GRID_SAMPLES])
def test_a_frame_is_computed_once_and_once_more_at_the_edge(step_samples: int) -> None:
    audio = noise(10, *[0.1] * 20)
    front = Counting()
    piece = IncrementalMel(front)
    steps = range(MIN_SAMPLES // GRID_SAMPLES * GRID_SAMPLES + step_samples, len(audio) + 1, step_samples)
    for upto in steps:
        piece.feed(audio[:upto])
    assert front.computed == front.frames(steps[-1]) + len(steps) - 1


@pytest.mark.parametrize(
    ("before", "after", "again"), [(160_000, 150_400, 1), (160_000, 160_000, 1), (160_000, 64_000, 400)]
)
def test_shrinking_within_the_open_window_computes_nothing_again(before: int, after: int, again: int) -> None:
    audio = noise(11, *[0.1] * 10)
    front = Counting()
    piece = IncrementalMel(front)
    piece.feed(audio[:before])
    front.computed = 0
    piece.feed(audio[:after])
    assert front.computed == again


def test_memory_is_one_open_window_and_the_closed_ones() -> None:
    audio = noise(12, *[0.1] * 28)
    tracemalloc.start()
    try:
        piece = IncrementalMel(FRONT)
        for upto in range(0, len(audio) + 1, 8 * GRID_SAMPLES):
            piece.feed(audio[:upto])
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    window_bytes = MELS * WINDOW_FRAMES * 4
    assert 4 * window_bytes <= held_bytes < 4.1 * window_bytes


def test_pieces_that_share_a_front_end_do_not_meet() -> None:
    audio = {IncrementalMel(FRONT): noise(13, *[0.1] * 9), IncrementalMel(FRONT): noise(14, *[0.5] * 9)}
    for upto in range(0, 9 * SAMPLE_RATE + 1, 12 * GRID_SAMPLES):
        for piece, samples in audio.items():
            piece.feed(samples[:upto])
    for piece, samples in audio.items():
        piece.feed(samples)
        np.testing.assert_array_equal(joined(piece.exact_windows()), FRONT.whole(samples))
