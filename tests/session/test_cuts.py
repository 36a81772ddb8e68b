"""A recording is cut as a live session cuts, whatever its portions."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import FRAME_SAMPLES, GRID_SAMPLES, SessionConfig, StepKind, TurnDetection
from qwen3_asr_server.messages import Finish
from qwen3_asr_server.session.cuts import Cut, PieceCutter
from qwen3_asr_server.session.options import SessionOptions
from support.session_sim import Sim, audio, packets

OPTIONS = SessionOptions()
TURNS = [TurnDetection(), TurnDetection(silence_ms=2000), TurnDetection(silence_ms=300, prefix_padding_ms=0), None]
SPEECH = st.tuples(st.sampled_from([0.6, 0.7, 0.9]), st.integers(1, 400))
SILENCE = st.tuples(st.just(0.0), st.integers(1, 90))
SCRIPTS = st.lists(st.one_of(SPEECH, SILENCE), max_size=12)


def cuts_of(samples, turn=None, options=OPTIONS, size=16_000) -> list[Cut]:
    """Cut a recording with the scripted detector: a frame's probability is its mean amplitude."""
    cutter, cuts = PieceCutter(turn, options), []

    def score() -> None:
        while (job := cutter.frames_to_score()) is not None:
            assert cutter.frames_to_score() is None, "one job at a time"
            before = cutter.earliest
            found = cutter.scored(np.abs(job.frames).mean(axis=1).astype(np.float32))
            assert all(cut.start >= before for cut in found)
            cuts.extend(found)

    for at in range(0, len(samples), size):
        cutter.append(samples[at : at + size])
        score()
    cuts.extend(cutter.finish())
    score()
    assert cutter.received == cutter.earliest == len(samples)
    return cuts


@given(SCRIPTS, st.sampled_from(TURNS), st.integers(100, 50_000), st.integers(0, 511))
def test_the_pieces_are_those_of_a_live_session(script, turn, size, odd):
    samples = np.concatenate([audio(script), np.full(odd, 0.7, np.float32)])
    live = Sim(SessionConfig(turn_detection=turn), Random(1), OPTIONS, skips=0.0)
    live.run([*packets(samples, [size]), Finish()])
    last = {job.piece: job for job in live.decoded if job.kind is not StepKind.PARTIAL}
    finals = [last[piece] for piece in sorted(last)]
    cuts = cuts_of(samples, turn, size=size)
    assert [(cut.start, cut.end) for cut in cuts] == [(job.start, job.upto) for job in finals]
    for cut, job in zip(cuts, finals, strict=True):
        assert np.array_equal(cut.audio, job.audio)


@given(SCRIPTS, st.sampled_from(TURNS), st.integers(100, 50_000))
def test_no_sample_is_decoded_twice_or_lost_except_silence(script, turn, size):
    samples = audio(script)
    cuts = cuts_of(samples, turn, size=size)
    heard = np.zeros(len(samples) + FRAME_SAMPLES, np.int8)
    for number, cut in enumerate(cuts):
        following = cuts[number + 1] if number + 1 < len(cuts) else None
        assert 0 < cut.end - cut.start <= OPTIONS.max_piece_s * 16_000
        assert (cut.end - cut.start) % GRID_SAMPLES == 0
        assert len(cut.audio) == cut.end - cut.start
        assert cut.start <= cut.speech_start < cut.speech_end
        assert cut.first == (number == 0)
        assert cut.overlapped == (following is not None and following.overlaps)
        if following is not None and not cut.overlapped:
            assert cut.end <= following.start
        end = cut.end if not cut.overlapped else following.start
        heard[cut.start : end] += 1
    assert heard.max(initial=0) <= 1
    # Two voiced frames are speech; what is shorter, and stands alone, is a click.
    unheard = (np.abs(samples) > 0.5) & (heard[: len(samples)] == 0)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], unheard.view(np.int8), [0]]))))[::2]
    assert max(runs, default=0) <= 2 * FRAME_SAMPLES


@pytest.mark.parametrize("size", [500, 16_000, 10**7])
def test_a_forced_cut_is_heard_again_on_the_other_side(size):
    cuts = cuts_of(audio([(0.7, 1300)]), TurnDetection(), SessionOptions(max_utterance_s=1000), size)
    assert [cut.overlapped for cut in cuts] == [True, False]
    assert cuts[0].end - cuts[1].start == pytest.approx(0.8 * 16_000, abs=1)


def test_silence_gives_no_piece():
    assert cuts_of(np.zeros(16_000 * 90, np.float32), TurnDetection()) == []
    assert cuts_of(np.zeros(0, np.float32), TurnDetection()) == []


def test_memory_is_that_of_the_open_piece():
    cutter = PieceCutter(TurnDetection(), OPTIONS)
    for _ in range(600):
        cutter.append(np.zeros(16_000, np.float32))
        while (job := cutter.frames_to_score()) is not None:
            cutter.scored(np.zeros(len(job.frames), np.float32))
    assert cutter._track._timeline.allocated_samples < 16_000 * 6
