from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE, StepKind
from qwen3_asr_server.text.rollback import Rollback, max_tokens

ASR_TEXT = 1000
HEADERS = {"English": 1001, "Chinese": 1002, "None": 1003, "Klingon": 1004}
STEP_S = 0.4


def decode(ids: Sequence[int]) -> str:
    """A tokenizer of bytes, with a token for each header and `<asr_text>`."""
    names = {token: f"language {name}" for name, token in HEADERS.items()} | {ASR_TEXT: "<asr_text>"}
    parts: list[bytes] = [names[i].encode() if i in names else bytes([i]) for i in ids]
    return b"".join(parts).decode(errors="replace")


def text_ids(text: str) -> list[int]:
    return list(text.encode())


def answer(text: str, language: str = "English") -> list[int]:
    return [HEADERS[language], ASR_TEXT, *text_ids(text)]


def samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def after(answers: Sequence[tuple[float, str]], *, forced: bool = True) -> Rollback:
    """Return the state after answers heard at these seconds, all of it speech."""
    rollback = Rollback(ASR_TEXT, decode, forced=forced)
    for seconds, text in answers:
        rollback.heard(text_ids(text) if forced else answer(text), samples(seconds), samples(seconds))
    return rollback


def kept(rollback: Rollback) -> str:
    return decode(rollback.prefix())


@pytest.mark.parametrize(
    ("answers", "prefix"),
    [
        ([], ""),
        ([(0.4, "abcdefgh")], ""),
        # The last five go, however old.
        ([(0.4, "abcdefgh"), (2.0, "abcdefgh")], "abc"),
        ([(0.4, "abcde"), (2.0, "abcde")], ""),
        # What stood there 1.2 s ago stays, what came later goes.
        ([(0.8, "abcdefgh"), (2.0, "abcdefghijklm")], "abcdefgh"),
        ([(0.88, "abcdefgh"), (2.0, "abcdefghijklm")], ""),
        ([(0.8, "abcd"), (1.2, "abcdefgh"), (2.0, "abcdefghijklm")], "abcd"),
        # A change makes everything from there on young.
        ([(0.8, "abcdefgh"), (1.6, "abXdefgh"), (2.0, "abXdefghijklm")], "ab"),
        ([(0.8, "abcdefgh"), (1.6, "abX"), (2.0, "abcdefghijklm")], "ab"),
        # Half a character, punctuation and spaces at the end go too.
        ([(0.4, "一二三四五"), (2.0, "一二三四五")], "一二三"),
        ([(0.4, "abcde好fgh"), (2.0, "abcde好fgh")], "abcde"),
        ([(0.4, "abcd, fghij"), (2.0, "abcd, fghij")], "abcd"),
        ([(0.4, "你。abcde"), (2.0, "你。abcde")], "你"),
        ([(0.4, "...!, abcde"), (2.0, "...!, abcde")], ""),
        ([(0.4, "it's abcde"), (2.0, "it's abcde")], "it's"),
    ],
)
def test_old_text_is_kept_and_young_text_given_up(answers: list[tuple[float, str]], prefix: str) -> None:
    rollback = after(answers)
    assert kept(rollback) == prefix
    assert rollback.given_up() == len(text_ids(answers[-1][1]) if answers else []) - len(text_ids(prefix))


def test_a_shorter_hearing_keeps_only_what_is_old_for_it() -> None:
    rollback = after([(2.0, "abcdefgh"), (4.0, "abcdefghijklmno"), (3.2, "abcdefghijklmno")])
    assert kept(rollback) == "abcdefgh"


def heard(steps: Sequence[tuple[float, Sequence[int]]]) -> Rollback:
    rollback = Rollback(ASR_TEXT, decode)
    for seconds, ids in steps:
        rollback.heard(ids, samples(seconds), samples(seconds))
    return rollback


LONG = "abcdefgh"


@pytest.mark.parametrize(
    ("steps", "prefix"),
    [
        # Two answers agree, and a second of speech has been heard.
        ([(0.4, answer(LONG)), (2.0, answer(LONG))], answer("abc")),
        ([(2.0, answer(LONG))], []),
        ([(0.4, answer(LONG)), (0.88, answer(LONG))], []),
        ([(0.4, answer(LONG, "Chinese")), (2.0, answer(LONG))], []),
        ([(0.4, answer(LONG)), (1.2, answer(LONG, "Chinese")), (2.0, answer(LONG))], []),
        ([(0.4, answer(LONG, "Chinese")), (1.2, answer(LONG)), (2.0, answer(LONG))], answer("abc")),
        # The header goes whole, and alone where the text is young.
        ([(0.4, answer("ab")), (1.2, answer("ab"))], answer("")),
        ([(0.4, [HEADERS["English"]]), (2.0, [HEADERS["English"]])], []),
        # Neither silence nor an unknown language is ever forced.
        ([(0.4, answer("", "None")), (2.0, answer("", "None"))], []),
        ([(0.4, answer(LONG, "None")), (2.0, answer(LONG, "None"))], []),
        ([(0.4, answer(LONG, "Klingon")), (2.0, answer(LONG, "Klingon"))], []),
        ([(0.4, text_ids(LONG)), (2.0, text_ids(LONG))], []),
    ],
)
def test_a_header_is_kept_once_it_can_be_trusted(steps: list[tuple[float, list[int]]], prefix: list[int]) -> None:
    assert list(heard(steps).prefix()) == prefix


def test_a_header_waits_for_speech_not_for_audio() -> None:
    rollback = Rollback(ASR_TEXT, decode)
    for seconds, speech in ((0.4, 0.0), (2.0, 0.9)):
        rollback.heard(answer(LONG), samples(seconds), samples(speech))
    assert rollback.prefix() == ()
    rollback.heard(answer(LONG), samples(2.4), samples(1.0))
    assert list(rollback.prefix()) == answer("abc")


@pytest.mark.parametrize(
    ("later", "stalled"),
    [
        ([(2.4, 2.4, LONG), (3.2, 3.2, LONG)], True),
        ([(2.4, 2.4, LONG), (3.2, 3.2, "abcdefg")], True),
        ([(2.4, 2.4, "abcdefg"), (3.2, 3.2, LONG)], True),
        # One step, too little time, no speech in it, or something new.
        ([(3.2, 3.2, LONG)], False),
        ([(2.4, 2.4, LONG), (3.12, 3.12, LONG)], False),
        ([(2.4, 2.0, LONG), (6.0, 2.4, LONG)], False),
        ([(2.4, 2.4, LONG), (3.2, 3.2, LONG + "i")], False),
        ([(2.4, 2.4, LONG), (3.2, 3.2, "abcdefgX")], False),
    ],
)
def test_an_answer_that_stands_still_while_speech_goes_on_is_a_stall(
    later: list[tuple[float, float, str]], stalled: bool
) -> None:
    rollback = after([(2.0, LONG)])
    for seconds, speech, text in later:
        rollback.heard(text_ids(text), samples(seconds), samples(speech))
    assert rollback.stalled is stalled
    if stalled:
        assert rollback.prefix() == ()
        assert rollback.given_up() == len(text_ids(later[-1][2]))


def test_after_a_stall_one_step_begins_from_nothing() -> None:
    rollback = after([(0.4, LONG), (1.2, LONG), (2.0, LONG)])
    assert rollback.stalled
    rollback.heard(text_ids(LONG), samples(2.4), samples(2.4))
    assert kept(rollback) == "abc"
    rollback.heard(text_ids(LONG), samples(2.8), samples(2.8))
    rollback.heard(text_ids(LONG), samples(3.52), samples(3.52))
    assert not rollback.stalled
    rollback.heard(text_ids(LONG), samples(3.6), samples(3.6))
    assert rollback.stalled


def test_a_restart_forgets_everything() -> None:
    rollback = heard([(0.4, answer(LONG)), (2.0, answer(LONG))])
    rollback.restart()
    assert rollback.prefix() == ()
    assert rollback.given_up() == 0
    rollback.heard(answer(LONG), samples(4.0), samples(4.0))
    assert rollback.prefix() == ()


ANSWERS = st.lists(st.text(alphabet="a好é, 。", max_size=12), min_size=1, max_size=12)


@given(ANSWERS, st.booleans(), st.lists(st.sampled_from(sorted(HEADERS)), min_size=12, max_size=12))
def test_a_prefix_is_a_beginning_of_the_last_answer_that_a_model_can_go_on_from(
    texts: list[str], forced: bool, languages: list[str]
) -> None:
    rollback = Rollback(ASR_TEXT, decode, forced=forced)
    for step, (text, language) in enumerate(zip(texts, languages, strict=False), start=1):
        ids = text_ids(text) if forced else answer(text, language)
        rollback.heard(ids, samples(step * STEP_S), samples(step * STEP_S))
        prefix = list(rollback.prefix())
        assert prefix == ids[: len(prefix)]
        assert rollback.given_up() == len(ids) - len(prefix)
        head, body = (0, prefix) if forced or not prefix else (2, prefix[2:])
        assert len(body) <= max(0, len(ids) - head - 5)
        assert decode(body)[-1:] not in {"\ufffd", ",", " ", "。"} or not body
        if prefix and not forced:
            assert prefix[1] == ASR_TEXT
            assert prefix[0] in {HEADERS["English"], HEADERS["Chinese"]}


@given(st.text(alphabet="abc好 ,.", min_size=30, max_size=60), st.integers(1, 4))
def test_a_speaker_who_goes_on_gives_a_prefix_that_never_shrinks(text: str, pace: int) -> None:
    rollback = Rollback(ASR_TEXT, decode, forced=True)
    last = 0
    for step in range(1, len(text) // pace):
        rollback.heard(text_ids(text[: step * pace]), samples(step * STEP_S), samples(step * STEP_S))
        assert not rollback.stalled
        assert len(rollback.prefix()) >= last
        last = len(rollback.prefix())


@pytest.mark.parametrize(
    ("kind", "new_audio_s", "given_up", "catch_up", "tokens"),
    [
        (StepKind.PARTIAL, 0.4, 5, False, 18),
        (StepKind.PARTIAL, 0.0, 0, False, 8),
        (StepKind.PARTIAL, 8.0, 5, False, 32),
        (StepKind.PARTIAL, 8.0, 5, True, 109),
        (StepKind.PARTIAL, 0.4, 5, True, 32),
        (StepKind.CANDIDATE, 0.4, 0, False, 32),
        (StepKind.FINAL, 0.4, 0, False, 32),
        (StepKind.FINAL, 28.0, 0, False, 344),
        (StepKind.FINAL, 2.0, 7, False, 39),
    ],
)
def test_a_step_may_write_what_its_audio_can_hold(
    kind: StepKind, new_audio_s: float, given_up: int, catch_up: bool, tokens: int
) -> None:
    assert max_tokens(kind, new_audio_s, given_up, 32, catch_up=catch_up) == tokens


def test_the_setting_bounds_partials_alone() -> None:
    assert max_tokens(StepKind.PARTIAL, 4.0, 5, 10) == 10
    assert max_tokens(StepKind.PARTIAL, 4.0, 5, 100) == 61
    assert max_tokens(StepKind.FINAL, 4.0, 5, 10) == 61
