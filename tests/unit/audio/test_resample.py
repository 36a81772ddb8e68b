import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.resample import Resampler
from qwen3_asr_server.domain import SAMPLE_RATE, Samples
from support.audio_files import cut, tone

RATES = [4_000, 8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000]


def resampled(samples: Samples, rate: int) -> Samples:
    resampler = Resampler(rate)
    return np.concatenate([resampler.process(samples), resampler.flush()])


def test_the_same_rate_passes_through() -> None:
    samples = tone(440, 0.1)
    resampler = Resampler(SAMPLE_RATE)
    assert resampler.process(samples) is samples
    assert len(resampler.flush()) == 0


@given(
    rate=st.sampled_from(RATES),
    count=st.integers(0, 4_000),
    cuts=st.lists(st.integers(0, 4_000), max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_cut_does_not_matter(rate: int, count: int, cuts: list[int], seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)
    resampler = Resampler(rate)
    parts = [resampler.process(piece) for piece in cut(samples, cuts)]
    output = np.concatenate([*parts, resampler.flush()])
    np.testing.assert_array_equal(output, resampled(samples, rate))
    assert len(output) == pytest.approx(count * SAMPLE_RATE / rate, abs=1)
    assert output.dtype == np.float32
    assert np.abs(output).max(initial=0) <= 1


def test_single_samples_give_the_same_too() -> None:
    samples = tone(440, 0.3, 8_000)
    resampler = Resampler(8_000)
    parts = [resampler.process(samples[at : at + 1]) for at in range(len(samples))]
    np.testing.assert_array_equal(np.concatenate([*parts, resampler.flush()]), resampled(samples, 8_000))


@pytest.mark.parametrize("rate", RATES)
def test_after_a_flush_it_is_as_new(rate: int) -> None:
    resampler = Resampler(rate)
    resampler.process(tone(700, 0.2, rate))
    resampler.flush()
    again = np.concatenate([resampler.process(tone(440, 0.2, rate)), resampler.flush()])
    np.testing.assert_array_equal(again, resampled(tone(440, 0.2, rate), rate))


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_place_and_loudness(rate: int) -> None:
    output = resampled(tone(440, 2, rate), rate)
    inner = slice(4_000, -4_000)
    np.testing.assert_allclose(output[inner], tone(440, 2)[inner], atol=2e-3)


@pytest.mark.parametrize(("rate", "frequency"), [(8_000, 3_500), (48_000, 7_000)])
def test_the_top_of_the_band_is_kept(rate: int, frequency: float) -> None:
    output = resampled(tone(frequency, 1, rate), rate)[4_000:-4_000]
    assert np.sqrt(2 * np.mean(np.square(output))) == pytest.approx(0.5, rel=0.01)


def test_what_16_khz_cannot_hold_is_removed() -> None:
    output = resampled(tone(10_000, 1, 48_000), 48_000)[4_000:-4_000]
    assert np.abs(output).max() < 1e-4


@pytest.mark.parametrize(
    ("rate", "most_ms"), [(8_000, 120), (11_025, 90), (24_000, 45), (44_100, 45), (48_000, 45), (96_000, 85)]
)
def test_the_delay_is_what_the_module_says(rate: int, most_ms: float) -> None:
    resampler, got = Resampler(rate), 0
    packet = np.zeros(rate // 100, np.float32)
    for sent in range(1, 101):
        got += len(resampler.process(packet))
        assert sent * 10 - got / 16 <= most_ms
