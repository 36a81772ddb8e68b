import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qwen3_asr_server.text.join import GrowingText, join_texts, merge_overlap


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ([], ""),
        (["", " ", ""], ""),
        (["one"], "one"),
        (["one", "", "two"], "one two"),
        (["one ", " two"], "one two"),
        (["One.", "Two."], "One. Two."),
        (["今天", "天气"], "今天天气"),
        (["今天。", "天气"], "今天。天气"),
        (["我用", "iPhone", "拍照"], "我用iPhone拍照"),
        (["OK", "，好"], "OK，好"),
        (["the store", ", and"], "the store, and"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["コーヒー", "です"], "コーヒーです"),
    ],
)
def test_join(parts: list[str], joined: str) -> None:
    assert join_texts(parts) == joined


@given(st.lists(st.text(alphabet="ab 今。.,", max_size=6).map(str.strip), max_size=6))
def test_a_text_grows_to_what_joining_gives(parts: list[str]) -> None:
    growing = GrowingText()
    assert "".join([growing.add(part) for part in parts]) == growing.text == join_texts(parts)


@given(st.lists(st.text(alphabet="ab 今。.,", max_size=6), max_size=6))
def test_joining_keeps_every_character_and_does_not_depend_on_grouping(parts: list[str]) -> None:
    joined = join_texts(parts)
    assert joined.replace(" ", "") == "".join(parts).replace(" ", "")
    assert joined == joined.strip()
    assert ("  " in joined) == any("  " in part.strip() for part in parts)
    for cut in range(len(parts) + 1):
        assert join_texts([join_texts(parts[:cut]), join_texts(parts[cut:])]) == joined


@pytest.mark.parametrize(
    ("left", "right", "merged"),
    [
        pytest.param("we went to the", "to the store", "we went to the store", id="clean overlap"),
        pytest.param("we went to the sto", "to the store and", "we went to the store and", id="left word cut"),
        pytest.param("we went to the", "o the store", "we went to the store", id="right word cut"),
        pytest.param("We went to The.", "the store", "We went to The store", id="case and punctuation"),
        pytest.param(
            "we went to the", "the, or a, store", "we went to the, or a, store", id="right's punctuation wins"
        ),
        pytest.param("it goes on and on", "on and on forever", "it goes on and on forever", id="repetition"),
        pytest.param("no no no", "no no yes", "no no no yes", id="repetition longer than the overlap"),
        pytest.param("let it go", "go go home", "let it go go home", id="of two matches the nearer one"),
        pytest.param("all of it", "of it", "all of it", id="nothing new"),
        pytest.param("all of it", "what else", "all of it what else", id="nothing common"),
        pytest.param("the cat sat on a", "mat the dog ran", "the cat sat on a mat the dog ran", id="chance match"),
        pytest.param("", "one two", "one two", id="empty left"),
        pytest.param("one two", "", "one two", id="empty right"),
        pytest.param("我们去商店", "商店买东西", "我们去商店买东西", id="Chinese"),
        pytest.param("我们去商点", "去商店买东西", "我们去商店买东西", id="Chinese, last character misheard"),
        pytest.param("我们去商店。", "商店，然后回家。", "我们去商店，然后回家。", id="Chinese punctuation"),
        pytest.param("今天天气", "很好", "今天天气很好", id="Chinese, nothing common"),
        pytest.param("我用iPhone", "iphone拍照", "我用iPhone拍照", id="mixed scripts"),
    ],
)
def test_what_both_pieces_heard_is_said_once(left: str, right: str, merged: str) -> None:
    assert join_texts(merge_overlap(left, right)) == merged


def test_the_search_is_bounded() -> None:
    left, right = "a b c d", "a b c d e"
    assert merge_overlap(left, right, max_units=4) == ("a b c d", "e")
    assert merge_overlap("x " + left, "y z " + right, max_units=2) == ("x " + left, "y z " + right)


def test_the_end_of_a_long_text_is_enough() -> None:
    left = "so it goes on " * 1000 + "to the sto"
    assert join_texts(merge_overlap(left, "to the store")) == left + "re"


words = st.lists(st.sampled_from([f"w{i}" for i in range(40)]), max_size=12, unique=True)


@given(words, st.integers(0, 12), st.integers(0, 4))
def test_cutting_a_text_of_different_words_with_overlap_gives_it_back(words: list[str], cut: int, shared: int) -> None:
    assume(cut <= len(words))
    left, right = words[:cut], words[max(0, cut - shared) :]
    assert join_texts(merge_overlap(" ".join(left), " ".join(right))) == " ".join(words)
