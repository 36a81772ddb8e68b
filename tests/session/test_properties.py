"""What holds of every session, whatever is said, however it is cut into packets, whoever answers first."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE, SessionConfig, StepKind, TurnDetection
from qwen3_asr_server.messages import (
    Clear,
    Cleared,
    Command,
    Commit,
    Configure,
    Finish,
    Finished,
    SpeechStarted,
    SpeechStopped,
)
from qwen3_asr_server.session.options import SessionOptions
from support.session_sim import Script, Sim, assert_conversation, audio, contradictions, finals, packets

AMPLITUDES = st.sampled_from([0.0, 0.0, 0.01, 0.38, 0.45, 0.6, 0.8, 0.99])
SCRIPTS = st.lists(st.tuples(AMPLITUDES, st.integers(1, 60)), max_size=14)
TINY = st.lists(st.sampled_from([0, 1, 7, 160, 464, 512, 513]), max_size=5)
SIZES = st.builds(lambda tiny, rest: [*tiny, rest], TINY, st.sampled_from([900, 1600, 3200, 16_000, 100_000]))
SHORT = replace(SessionOptions(), max_piece_s=4.0, max_utterance_s=9.0, quiet_search_s=1.5, overlap_s=0.4)
"""Limits that short scripts reach."""

MANUAL = SessionConfig(turn_detection=None)
VAD = SessionConfig(turn_detection=TurnDetection(silence_ms=500))


def conversation(script: Script, sizes: list[int], config: SessionConfig, seed: int, options: SessionOptions) -> Sim:
    sim = Sim(config, Random(seed), options, final_candidates=bool(seed % 2))
    commits = [Commit()] if config.turn_detection is None and script else []
    sim.run([*packets(audio(script), sizes), *commits, Finish()])
    return sim


@given(SCRIPTS, SIZES, st.integers(0, 2**32), st.sampled_from([SHORT, SessionOptions()]), st.booleans())
def test_every_conversation_is_well_formed(
    script: Script, sizes: list[int], seed: int, options: SessionOptions, vad: bool
) -> None:
    sim = conversation(script, sizes, VAD if vad else MANUAL, seed, options)
    assert_conversation(sim.events, audio_ms=len(audio(script)) / 16)
    assert sim.machine.stale_outcomes == 0


@given(SCRIPTS, SIZES, st.integers(0, 2**32), st.booleans())
def test_an_engine_that_only_appends_never_contradicts_what_was_confirmed(
    script: Script, sizes: list[int], seed: int, vad: bool
) -> None:
    """Pieces settle in any order; what is shown as stable is right whichever comes first."""
    options = replace(SHORT, overlap_s=0, max_piece_s=2.5, stable_age_s=0.2)
    sim = conversation(script, sizes, VAD if vad else MANUAL, seed, options)
    assert contradictions(sim.events) == 0


COMMANDS = st.sampled_from(
    [
        Commit(),
        Clear(),
        Configure(MANUAL),
        Configure(VAD),
        Configure(SessionConfig(turn_detection=TurnDetection(silence_ms=200, prefix_padding_ms=0), language="fr")),
    ]
)


@given(st.lists(st.tuples(SCRIPTS, COMMANDS), max_size=8), SIZES, st.integers(0, 2**32), st.booleans())
def test_any_order_of_commands_is_answered(
    turns: list[tuple[Script, Command]], sizes: list[int], seed: int, vad: bool
) -> None:
    """Commits, clears and changes of mode at any place in the audio: still one final an item, and a finish."""
    sim = Sim(VAD if vad else MANUAL, Random(seed), SHORT, failures=0.1)
    said = [c for script, command in turns for c in (*packets(audio(script), sizes), command)]
    sim.run([*said, Finish()])
    assert_conversation(sim.events, audio_ms=sum(len(audio(script)) for script, _ in turns) / 16, may_fail=True)
    clears = sum(isinstance(command, Clear) for _, command in turns)
    assert sum(isinstance(event, Cleared) for event in sim.events) == clears


@given(SCRIPTS, SIZES, SIZES, st.integers(0, 2**32), st.integers(0, 2**32), st.booleans())
def test_finals_do_not_depend_on_packets_or_scheduling(
    script: Script, one: list[int], other: list[int], seed: int, seed2: int, vad: bool
) -> None:
    config = VAD if vad else MANUAL
    first = conversation(script, one, config, seed, SHORT)
    second = conversation(script, other, config, seed2, SHORT)
    places = (SpeechStarted, SpeechStopped)
    assert finals(first.events) == finals(second.events)
    assert [e for e in first.events if isinstance(e, places)] == [e for e in second.events if isinstance(e, places)]


PHRASES = st.lists(
    st.tuples(st.sampled_from([0.6, 0.8, 0.99]), st.integers(3, 40), st.integers(70, 90)), min_size=1, max_size=5
)


@given(PHRASES, st.integers(200, 2000), st.integers(0, 2**32))
def test_finals_do_not_depend_on_the_silence_setting(
    phrases: list[tuple[float, int, int]], silence_ms: int, seed: int
) -> None:
    """Pauses of 70 frames (2.2 s) and more exceed every setting up to 2 s."""
    script = [part for loud, frames, pause in phrases for part in ((loud, frames), (0.0, pause))]
    texts = [
        finals(conversation(script, [1600], SessionConfig(turn_detection=TurnDetection(silence_ms=ms)), seed, o).events)
        for ms, o in ((silence_ms, SessionOptions()), (800, SessionOptions()))
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(phrases)


@given(
    st.integers(200, 300),
    st.integers(4, 9),
    st.integers(0, 511),
    st.sampled_from([Finish(), Configure(MANUAL), Clear()]),
    SIZES,
    SIZES,
    st.integers(0, 2**32),
    st.integers(0, 2**32),
)
def test_a_final_needs_no_audio_behind_the_end_of_its_track(
    silence_ms: int, frames: int, rest: int, ended_by: Command, one: list[int], other: list[int], seed: int, seed2: int
) -> None:
    """An item may be over before all that is kept behind its speech has come; it gets none, or silence for it."""
    said = audio([(0.8, 20), (0.0, 10)])[: 512 * (20 + frames) + rest]
    texts = []
    for sizes, order in ((one, seed), (other, seed2)):
        sim = Sim(SessionConfig(turn_detection=TurnDetection(silence_ms=silence_ms)), Random(order))
        sim.run([*packets(said, sizes), ended_by, *packets(audio([(0.6, 20)]), sizes), Finish()])
        assert_conversation(sim.events)
        texts.append(finals(sim.events))
    assert texts[0] == texts[1]


@given(SCRIPTS, st.integers(0, 2**32), st.booleans())
def test_failures_never_lose_an_item(script: Script, seed: int, vad: bool) -> None:
    sim = Sim(VAD if vad else MANUAL, Random(seed), SHORT, failures=0.4)
    sim.run([*packets(audio(script), [1600]), *([] if vad or not script else [Commit()]), Finish()])
    assert_conversation(sim.events, may_fail=True)


@given(SCRIPTS, st.integers(0, 2**32), st.booleans(), st.sampled_from([0.01, 0.1, 0.5]))
def test_deaths_of_the_engine_never_lose_an_item(script: Script, seed: int, vad: bool, deaths: float) -> None:
    sim = Sim(VAD if vad else MANUAL, Random(seed), SHORT, deaths=deaths)
    sim.run([*packets(audio(script), [1600]), *([] if vad or not script else [Commit()]), Finish()])
    assert_conversation(sim.events, may_fail=True)


@given(st.integers(1, 400), SIZES, st.integers(0, 2**32), st.booleans())
def test_silence_never_reaches_the_engine(frames: int, sizes: list[int], seed: int, vad: bool) -> None:
    sim = conversation([(0.01, frames)], sizes, VAD if vad else MANUAL, seed, SessionOptions())
    assert sim.decoded == []
    assert finals(sim.events) == ([] if vad else [""])


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.booleans(), st.integers(20, 120))
def test_speech_without_end_runs_in_bounded_pieces(seed: int, vad: bool, seconds: int) -> None:
    """Nothing is heard that is longer than a piece, and memory does not grow with the item."""
    config = VAD if vad else MANUAL
    script = [(0.6 + 0.01 * (i % 30), 8) for i in range(seconds * 4)]
    sim = conversation(script, [1600], config, seed, SHORT)
    assert_conversation(sim.events)
    assert max(job.upto - job.start for job in sim.decoded) <= 4.3 * SAMPLE_RATE
    assert not vad or len(finals(sim.events)) >= seconds // 10


@given(SCRIPTS, st.integers(0, 2**32))
def test_a_second_finish_changes_nothing(script: Script, seed: int) -> None:
    sim = Sim(VAD, Random(seed))
    sim.run([*packets(audio(script), [1600]), Finish(), Finish(), Commit(), Finish()])
    assert [type(e) for e in sim.events].count(Finished) == 1
    assert_conversation(sim.events)


@given(st.lists(SCRIPTS.filter(len), min_size=1, max_size=4), SIZES, st.integers(0, 2**32))
def test_manual_items_do_not_influence_one_another(scripts: list[Script], sizes: list[int], seed: int) -> None:
    """Each committed item gets the final it gets in a session of its own."""
    alone = [finals(conversation(script, [1600], MANUAL, 0, SHORT).events)[0] for script in scripts]
    sim = Sim(MANUAL, Random(seed), SHORT)
    sim.run([*(c for script in scripts for c in (*packets(audio(script), sizes), Commit())), Finish()])
    assert_conversation(sim.events)
    assert finals(sim.events) == alone


@given(PHRASES, SIZES, st.integers(0, 2**32), st.booleans())
def test_no_engine_has_to_take_back_audio(
    phrases: list[tuple[float, int, int]], sizes: list[int], seed: int, vad: bool
) -> None:
    """Steps over a piece only ever grow, unless it is cut by force."""
    script = [part for loud, frames, pause in phrases for part in ((loud, frames), (0.0, pause % 40))]
    sim = conversation(script, sizes, VAD if vad else MANUAL, seed, SessionOptions())
    heard: dict[int, int] = {}
    for job in sim.decoded:
        assert job.upto >= heard.get(job.piece, 0)
        heard[job.piece] = job.upto


@given(PHRASES, st.integers(0, 2**32))
def test_a_candidate_that_came_true_leaves_no_work(phrases: list[tuple[float, int, int]], seed: int) -> None:
    """With an engine whose candidates are finals, no piece is decoded twice over the same range."""
    script = [part for loud, frames, pause in phrases for part in ((loud, frames), (0.0, pause))]
    sim = Sim(VAD, Random(seed), SessionOptions(), final_candidates=True, skips=0)
    sim.run([*packets(audio(script), [512]), Finish()])
    ranges = [(job.piece, job.upto) for job in sim.decoded if job.kind is not StepKind.PARTIAL]
    assert len(ranges) == len(set(ranges)) == len(phrases)
