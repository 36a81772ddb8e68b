import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.text.alignment import repaired_times, spoken_units, units_in_share, units_of_words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", []),
        (" … ' ", ["'"]),
        ("Turn on, the light!", ["Turn", "on", "the", "light"]),
        ("打开灯。你好", list("打开灯你好")),
        ("我用 iPhone15拍照", ["我", "用", "iPhone15", "拍", "照"]),
        ("it's 3.5 km, ice-cream.", ["it's", "3.5", "km", "ice-cream"]),
        ("the 'best' one", ["the", "best", "one"]),
        ("한국어 좋아요.", ["한국어", "좋아요"]),
        ("a — b", ["a", "b"]),
        ("<timestamp> x", ["timestamp", "x"]),
    ],
)
def test_units_are_characters_in_chinese_and_words_elsewhere(text: str, shown: list[str]) -> None:
    assert [unit.shown for unit in spoken_units(text)] == shown


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("it's 3.5 km, ice-cream.", ["it's", "35", "km", "icecream"]),
        ("the 'best' one", ["the", "'best'", "one"]),
        ("<|im_end|> <timestamp>", ["imend", "timestamp"]),
    ],
)
def test_the_aligner_is_given_letters_digits_and_apostrophes_only(text: str, spoken: list[str]) -> None:
    assert [unit.spoken for unit in spoken_units(text)] == spoken


@given(st.text(max_size=40))
def test_no_control_token_can_be_spelt(text: str) -> None:
    units = spoken_units(text)
    assert all(unit.spoken and not set(unit.spoken) & set("<>|_ ") for unit in units)
    assert all(unit.shown in text for unit in units)


def test_words_of_others_lose_their_punctuation() -> None:
    units = units_of_words(["今日", "は", "、", "いい", "天気", "。"])
    assert [unit.spoken for unit in units] == ["今日", "は", "いい", "天気"]


@pytest.mark.parametrize(
    ("given_times", "fixed"),
    [
        ([], []),
        ([5], [5]),
        ([0, 80, 80, 160], [0, 80, 80, 160]),
        ([0, 80, 900, 160, 240], [0, 80, 80, 160, 240]),
        ([0, 80, 900, 800, 160, 240], [0, 80, 80, 160, 160, 240]),
        ([0, 900, 800, 700, 400, 500, 600], [0, 100, 200, 300, 400, 500, 600]),
        ([900, 0, 80, 160], [0, 0, 80, 160]),
        ([400, 480, 560, 0, 0], [400, 480, 560, 560, 560]),
        ([80, 0], [80, 80]),
    ],
)
def test_times_that_go_back_are_repaired(given_times: list[int], fixed: list[int]) -> None:
    assert repaired_times(given_times) == fixed


@given(st.lists(st.integers(0, 400), max_size=60))
def test_repaired_times_are_in_order_and_within_what_was_given(times: list[int]) -> None:
    fixed = repaired_times(times)
    assert fixed == sorted(fixed)
    assert len(fixed) == len(times)
    assert set(fixed) <= set(range(min(times, default=0), max(times, default=0) + 1))
    assert repaired_times(fixed) == fixed


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60))
def test_times_in_order_stay(times: list[int]) -> None:
    assert repaired_times(sorted(times)) == sorted(times)


@pytest.mark.parametrize(
    ("text", "share", "count"),
    [
        ("one two six ten", 0.5, 2),
        ("one two six ten", 0.0, 1),
        ("one two six ten", 1.0, 4),
        ("打开灯你", 0.5, 2),
        ("打开 turnon", 0.5, 2),
        ("extraordinary no", 0.1, 1),
    ],
)
def test_units_are_shared_out_by_length(text: str, share: float, count: int) -> None:
    assert units_in_share(spoken_units(text), share) == count
