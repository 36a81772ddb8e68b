"""Words that are hidden or left out: which count, and what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import Word
from qwen3_asr_server.text.special_words import SpecialWords, finished, timed_words


@pytest.mark.parametrize(
    ("text", "hidden", "left_out", "expected"),
    [
        ("nothing to hide", [], [], "nothing to hide"),
        ("Open sesame now.", ["sesame"], [], "Open ****** now."),
        ("Open sesame now.", [], ["sesame"], "Open now."),
        ("SESAME Sesame", ["sesame"], [], "****** ******"),
        ("classes of the class", ["class"], [], "classes of the *****"),
        ("a b c", ["a", "c"], ["b"], "* *"),
        ("今天天气不错", ["天气"], [], "今天**不错"),
        ("今天天气不错", [], ["天气"], "今天不错"),
        ("open sesame now", ["sesame", "open sesame"], [], "*********** now"),
        ("2.5 costs (a lot)", ["2.5", "(a lot)"], [], "*** costs *******"),
        ("say it", ["say"], ["say it"], ""),
        ("spaces", ["", "  "], [" "], "spaces"),
    ],
)
def test_what_is_left(text: str, hidden: list[str], left_out: list[str], expected: str) -> None:
    marked = SpecialWords(tuple(hidden), tuple(left_out)).marked(text)
    assert len(marked) == len(text)
    assert finished(marked) == expected


@given(st.text(max_size=40), st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_places_stay(text: str, hidden: list[str], left_out: list[str]) -> None:
    marked = SpecialWords(tuple(hidden), tuple(left_out)).marked(text)
    assert len(marked) == len(text)
    assert all(after in (before, "*", "\0") for before, after in zip(text, marked, strict=True))


def word(text: str, start: int = 0) -> Word:
    return Word(text, start, start + 10)


@pytest.mark.parametrize(
    ("text", "spoken", "hidden", "expected"),
    [
        ("Well, hello there.", ["Well", "hello", "there"], (), [("Well", ","), ("hello", ""), ("there", ".")]),
        ("你好，世界。", ["你", "好", "世", "界"], (), [("你", ""), ("好", "，"), ("世", ""), ("界", "。")]),
        ("not cut alike", ["not cut", "alike"], (), [("not cut", ""), ("alike", "")]),
        ("say it, now", ["say", "it", "now"], ("it",), [("say", ""), ("**", ","), ("now", "")]),
        ("", [], (), []),
    ],
)
def test_words_have_the_punctuation_behind_them(
    text: str, spoken: list[str], hidden: tuple[str, ...], expected: list[tuple[str, str]]
) -> None:
    words = [word(each, 10 * place) for place, each in enumerate(spoken)]
    found = list(timed_words(text, words, SpecialWords(hidden)))
    assert [(shown, punctuation) for _, shown, punctuation in found] == expected
    assert [each for each, _, _ in found] == words


def test_words_that_are_left_out_are_missing() -> None:
    found = timed_words("a um b", [word("a"), word("um"), word("b")], SpecialWords(left_out=("um",)))
    assert [shown for _, shown, _ in found] == ["a", "b"]
