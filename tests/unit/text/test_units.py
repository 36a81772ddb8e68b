import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.text.units import split_units


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("", []),
        (" … ", []),
        ("Hello, world!", ["Hello", "world"]),
        ("it's 3.5 km, ice-cream.", ["it's", "3.5", "km", "ice-cream"]),
        ("“Hi” (ok) 50% done", ["Hi", "ok", "50", "done"]),
        ("one—two", ["one", "two"]),
        ("今天天气，很好。", ["今", "天", "天", "气", "很", "好"]),
        ("我用iPhone15拍照", ["我", "用", "iPhone15", "拍", "照"]),
        ("コーヒー、時々", ["コ", "ー", "ヒ", "ー", "時", "々"]),
        ("한국어 좋아요", ["한국어", "좋아요"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("مَرحَبا", ["مَرحَبا"]),
    ],
)
def test_words_in_spaced_scripts_and_characters_in_others(text: str, cores: list[str]) -> None:
    assert [unit.core for unit in split_units(text)] == cores


@given(st.text(max_size=40))
def test_units_tile_the_text_up_to_the_last_word(text: str) -> None:
    units = split_units(text)
    assert [unit.start for unit in units] == [0, *(unit.end for unit in units)][: len(units)]
    assert all(text[unit.start : unit.end].endswith(unit.core) and unit.core for unit in units)
    assert not any(char.isalnum() for char in text[units[-1].end if units else 0 :])
