"""Words that are hidden or left out: which count, and what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.text.special_words import SpecialWords, finished


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
