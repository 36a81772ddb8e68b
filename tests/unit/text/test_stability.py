from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import Word
from qwen3_asr_server.text.stability import StablePrefix, tail_after
from qwen3_asr_server.text.units import split_units

AGE = 100

Steps = Sequence[tuple[int, str]]


def words_of(text: str, ends: Sequence[int]) -> list[Word]:
    return [Word(word, end - 10, end) for word, end in zip(text.split(), ends, strict=True)]


@pytest.mark.parametrize(
    ("steps", "stable"),
    [
        pytest.param([(0, "one")], "", id="one hypothesis confirms nothing"),
        pytest.param([(0, "one"), (50, "one two")], "", id="agreement alone is too young"),
        pytest.param([(0, "one"), (100, "one two")], "one", id="agreed and old"),
        pytest.param([(0, "one"), (100, "won two")], "", id="old but not agreed"),
        pytest.param([(0, "one"), (50, "won"), (100, "one")], "", id="agreement starts over"),
        pytest.param([(0, "a b c"), (60, "a x c"), (100, "a x c")], "a", id="a change stops the prefix"),
        pytest.param([(0, "a b c"), (60, "a x c"), (160, "a x c")], "a x c", id="later units keep their age"),
        pytest.param([(0, "one"), (0, "one"), (0, "one")], "", id="the same audio is no second opinion"),
        pytest.param([(200, "one"), (100, "one")], "", id="shorter audio is no second opinion"),
        pytest.param([(0, "今天"), (100, "今天天气")], "今天", id="characters"),
        pytest.param([(0, "今天。"), (100, "今天。")], "今天", id="last punctuation waits"),
        pytest.param([(0, "今天。"), (100, "今天天气"), (200, "今天天气好")], "今天天气", id="punctuation taken back"),
        pytest.param([(0, "今天。好"), (100, "今天。好的")], "今天。好", id="punctuation with the next unit"),
        pytest.param([(0, "No  way"), (100, "No  way out")], "No  way", id="spacing kept"),
        pytest.param([(0, "…"), (100, "…"), (200, "…")], "", id="punctuation alone"),
    ],
)
def test_without_times_a_unit_is_as_old_as_the_hypothesis_that_brought_it(steps: Steps, stable: str) -> None:
    prefix = StablePrefix(AGE)
    for upto, text in steps:
        prefix.update(text, (), upto)
    assert prefix.confirmed == stable


@pytest.mark.parametrize(
    ("text", "ends", "stable"),
    [
        pytest.param("go to bed", [20, 60, 90], "go to bed", id="all old"),
        pytest.param("go to bed", [20, 60, 101], "go to", id="last too young"),
        pytest.param("go to bed", [120, 60, 90], "", id="first too young"),
        pytest.param("it's 3.5 km, ok", [20, 60, 90, 99], "it's 3.5 km, ok", id="punctuation inside words"),
    ],
)
def test_word_times_decide_the_age(text: str, ends: Sequence[int], stable: str) -> None:
    prefix = StablePrefix(AGE)
    prefix.update(text, words_of(text, ends), 199)
    assert prefix.update(text, words_of(text, ends), 200) == stable


def test_what_is_confirmed_stays_when_times_move() -> None:
    prefix = StablePrefix(AGE)
    for upto, ends in ((199, [20, 60]), (200, [20, 60]), (201, [20, 150])):
        prefix.update("go home", words_of("go home", ends), upto)
    assert prefix.confirmed == "go home"


def test_one_word_time_may_cover_several_characters() -> None:
    prefix = StablePrefix(AGE)
    words = [Word("今天", 0, 50), Word("天气", 50, 150)]
    prefix.update("今天，天气", words, 199)
    assert prefix.update("今天，天气", words, 200) == "今天"


@pytest.mark.parametrize(
    ("words", "stable"),
    [
        pytest.param(words_of("red fish", [10, 20]), "", id="the first is missing"),
        pytest.param(words_of("blue fish", [10, 20]), "blue", id="one is missing"),
        pytest.param(words_of("red blue", [10, 20]), "", id="another order"),
        pytest.param([Word("bl", 0, 10)], "", id="half a word"),
    ],
)
def test_times_are_used_as_far_as_they_follow_the_text(words: Sequence[Word], stable: str) -> None:
    prefix = StablePrefix(AGE)
    prefix.update("blue red fish", words, 100)
    assert prefix.update("blue red fish", words, 199) == stable
    assert prefix.update("blue red fish", words, 200) == "blue red fish"


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        pytest.param("we went home", " home", id="agrees"),
        pytest.param("we wentworth", "worth", id="a longer last word still begins with what is confirmed"),
        pytest.param("he went home", " home", id="first word differs"),
        pytest.param("he goes, and then", ", and then", id="punctuation kept"),
        pytest.param("hi", "", id="shorter"),
        pytest.param("", "", id="empty"),
        pytest.param("我们回家", "回家", id="another script"),
        pytest.param("我们 home", " home", id="space kept"),
        pytest.param("我们home", " home", id="space put in"),
    ],
)
def test_tail_reads_on_after_the_confirmed_words(text: str, tail: str) -> None:
    prefix = StablePrefix(0)
    prefix.update("we went", (), 0)
    assert prefix.update("we went", (), 1) == "we went"
    assert prefix.tail(text) == tail


def test_confirmed_punctuation_stands_for_no_word() -> None:
    assert tail_after("…", "we went") == " we went"


def test_contradictions_are_counted_and_change_nothing() -> None:
    prefix = StablePrefix(0)
    for upto, text in enumerate(["we went", "we went to", "he went to", "", "we went to bed"]):
        prefix.update(text, (), upto)
    assert prefix.contradictions == 2
    assert prefix.confirmed == "we went"
    assert prefix.update("we went to bed", (), 9) == "we went to bed"


texts = st.text(alphabet="ab 今天。,'é\u0301", max_size=12)
steps = st.lists(st.tuples(st.integers(0, 60), texts, st.booleans()), max_size=12)


@given(steps, st.integers(0, 120))
def test_confirmed_text_only_grows_and_shown_text_is_the_hypothesis(
    steps: Sequence[tuple[int, str, bool]], age: int
) -> None:
    prefix = StablePrefix(age)
    upto, confirmed, contradictions = 0, [""], 0
    for new, text, timed in steps:
        upto += new
        words = [Word(word, 0, max(0, upto - 30 * i)) for i, word in enumerate(reversed(text.split()))][::-1]
        contradictions += not text.startswith(confirmed[-1])
        confirmed.append(prefix.update(text, words if timed else (), upto))
        assert prefix.contradictions == contradictions
        if text.startswith(confirmed[-1]):
            assert confirmed[-1] + prefix.tail(text) == text
        else:
            assert confirmed[-1] == confirmed[-2]
            shown = split_units(confirmed[-1] + prefix.tail(text))
            assert len(shown) <= max(len(split_units(text)), len(split_units(confirmed[-1])))
    assert all(after.startswith(before) for before, after in pairwise(confirmed))
    assert all(text == "" or split_units(text)[-1].end == len(text) for text in confirmed)


@given(texts.filter(lambda text: bool(split_units(text))))
def test_a_hypothesis_that_stays_is_confirmed_up_to_its_last_word(text: str) -> None:
    prefix = StablePrefix(AGE)
    prefix.update(text, (), 0)
    assert prefix.update(text, (), AGE) == text[: split_units(text)[-1].end]
