import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.timeline import MIN_BLOCK_SAMPLES, Timeline
from qwen3_asr_server.domain import Samples


def ramp(start: int, count: int) -> Samples:
    """Samples that tell their own absolute index (exact in float32 up to 2**24)."""
    return np.arange(start, start + count, dtype=np.float32)


def filled(count: int, start: int = 0) -> Timeline:
    timeline = Timeline(start)
    timeline.append(ramp(start, count))
    return timeline


def test_a_new_timeline_is_empty() -> None:
    timeline = Timeline(7)
    assert (timeline.start, timeline.end) == (7, 7)
    assert timeline.read(7, 7).shape == (0,)


@pytest.mark.parametrize(
    ("start", "upto", "expected"),
    [
        (100, 104, [100, 101, 102, 103]),
        (107, 112, [107, 108, 109, 0, 0]),
        (110, 112, [0, 0]),
        (115, 117, [0, 0]),
        (103, 103, []),
    ],
    ids=["inside", "past the end", "from the end", "beyond the end", "empty"],
)
def test_read_pads_with_silence(start: int, upto: int, expected: list[float]) -> None:
    audio = filled(10, start=100).read(start, upto)
    assert audio.dtype == np.float32
    assert audio.tolist() == expected


@pytest.mark.parametrize(("start", "upto"), [(99, 105), (105, 104)], ids=["trimmed", "backwards"])
def test_read_asserts_its_range(start: int, upto: int) -> None:
    timeline = filled(200)
    timeline.trim(100)
    with pytest.raises(AssertionError):
        timeline.read(start, upto)


@pytest.mark.parametrize("upto", [10, 12], ids=["view", "padded copy"])
def test_what_is_read_cannot_be_written(upto: int) -> None:
    audio = filled(10).read(0, upto)
    with pytest.raises(ValueError, match="read-only"):
        audio[0] = 1


def test_a_read_inside_the_buffer_copies_nothing() -> None:
    timeline = filled(1000)
    assert np.shares_memory(timeline.read(0, 900), timeline.read(10, 1000))


def test_append_copies_what_the_caller_may_reuse() -> None:
    packet = ramp(0, 4)
    timeline = Timeline()
    timeline.append(packet)
    packet[:] = -1
    assert timeline.read(0, 4).tolist() == [0, 1, 2, 3]


def test_trim_never_goes_back_nor_past_the_end() -> None:
    timeline = filled(10)
    timeline.trim(6)
    timeline.trim(2)
    assert timeline.start == 6
    timeline.trim(50)
    assert (timeline.start, timeline.end) == (10, 10)
    timeline.append(ramp(10, 3))
    assert timeline.read(10, 13).tolist() == [10, 11, 12]


def test_memory_is_given_back_after_a_long_piece() -> None:
    timeline = filled(100 * MIN_BLOCK_SAMPLES)
    timeline.trim(timeline.end - 10)
    assert timeline.allocated_samples == MIN_BLOCK_SAMPLES
    assert timeline.read(timeline.end - 10, timeline.end).tolist() == ramp(timeline.end - 10, 10).tolist()


def test_an_hour_of_packets_with_a_short_memory_moves_each_sample_about_once() -> None:
    timeline, packet, keep = Timeline(), np.zeros(3_200, np.float32), 28 * 16_000
    block, moves, appended = None, 0, 3600 * 16_000
    for at in range(0, appended, len(packet)):
        timeline.append(packet)
        timeline.trim(at - keep)
        latest = timeline.read(timeline.end, timeline.end).base
        moves += latest is not block
        block = latest
        assert timeline.allocated_samples <= 4 * (keep + len(packet))
    assert moves * keep <= 1.2 * appended


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[str, int]]:
    size = st.one_of(st.integers(0, 50), st.integers(0, 2 * MIN_BLOCK_SAMPLES))
    return draw(st.lists(st.tuples(st.sampled_from(["append", "trim", "read"]), size), max_size=30))


@given(_steps())
def test_behaves_like_one_long_array_and_views_never_change(steps: list[tuple[str, int]]) -> None:
    timeline, kept = Timeline(), list[tuple[int, Samples]]()
    for step, size in steps:
        match step:
            case "append":
                timeline.append(ramp(timeline.end, size))
            case "trim":
                timeline.trim(timeline.start + size)
            case _:
                upto = min(timeline.start + size, timeline.end)
                kept.append((timeline.start, timeline.read(timeline.start, upto)))
        assert timeline.allocated_samples <= max(4 * (timeline.end - timeline.start), MIN_BLOCK_SAMPLES)
    for start, audio in kept:
        np.testing.assert_array_equal(audio, ramp(start, len(audio)))


def test_quietest_finds_the_centre_of_the_gap() -> None:
    audio = np.ones(16_000, np.float32)
    audio[8_000:9_280] = 0
    timeline = Timeline(1_000)
    timeline.append(audio)
    assert timeline.quietest(1_000, 17_000, 1_280) == 1_000 + 8_640


@pytest.mark.parametrize(
    ("count", "start", "upto", "expected"),
    [
        (16_000, 0, 16_000, 640),
        (16_000, 3_200, 16_000, 3_840),
        (16_000, 100, 1_000, 550),
        (16_000, 16_000, 16_000, 16_000),
    ],
    ids=["earliest of equals", "within the range", "no window fits", "empty"],
)
def test_quietest_of_a_constant(count: int, start: int, upto: int, expected: int) -> None:
    timeline = Timeline()
    timeline.append(np.full(count, 0.3, np.float32))
    assert timeline.quietest(start, upto, 1_280) == expected


def test_quietest_counts_what_is_past_the_end_as_silence() -> None:
    timeline = Timeline()
    timeline.append(np.full(16_000, 0.3, np.float32))
    assert timeline.quietest(0, 20_000, 1_280) == 16_640


@given(st.integers(0, 2**32 - 1), st.integers(0, 4_000), st.integers(0, 4_000))
def test_quietest_is_inside_and_nothing_is_quieter(seed: int, start: int, length: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.1, 8_000).astype(np.float32)
    timeline = Timeline()
    timeline.append(noise)
    centre = timeline.quietest(start, start + length, 320, step_samples=40)
    assert start <= centre <= start + length
    if length >= 320:
        best = np.square(noise[centre - 160 : centre + 160]).sum()
        others = [np.square(noise[i : i + 320]).sum() for i in range(start, start + length - 319, 40)]
        assert best <= min(others) * 1.0001
