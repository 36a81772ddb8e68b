"""Hotwords in the forms that clients write them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.text.context import Hotword
from qwen3_asr_server.text.hotwords import MAX_HOTWORDS, MAX_SOUNDS, context_of, hotwords_of

FORMS: list[tuple[object, list[Hotword]]] = [
    (None, []),
    ([], []),
    (["Qwen", "vLLM"], [Hotword("Qwen"), Hotword("vLLM")]),
    ([{"word": "不二家", "sounds_like": ["bu er jia"]}], [Hotword("不二家", ("bu er jia",))]),
    ([{"word": "SQL", "sounds_like": "sequel"}], [Hotword("SQL", ("sequel",))]),
    ([{"word": "Qwen", "sounds_like": None}], [Hotword("Qwen")]),
    ([{"text": "Qwen", "weight": 4, "lang": "zh"}], [Hotword("Qwen", (), 4.0)]),
    ([{"text": "Qwen", "weight": None}], [Hotword("Qwen")]),
    ({"Qwen": 4, "vLLM": 2.5}, [Hotword("Qwen", (), 4.0), Hotword("vLLM", (), 2.5)]),
    ([{"text": "um", "weight": -6}, "Qwen"], [Hotword("Qwen")]),
]


@pytest.mark.parametrize(("value", "hotwords"), FORMS)
def test_every_form_is_read(value: object, hotwords: list[Hotword]) -> None:
    assert hotwords_of(value) == hotwords
    assert hotwords_of(json.dumps(value)) == hotwords


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_field_of_a_form_has_none(value: str) -> None:
    assert hotwords_of(value) == []


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("Qwen", "v"),
        ("[" * 100_000, "v"),
        (5, "v"),
        (True, "v"),
        (["Qwen"] * (MAX_HOTWORDS + 1), "v"),
        (["Qwen", 5], "v[1]"),
        ([["Qwen"]], "v[0]"),
        (["x" * 101], "v[0]"),
        ([{}], "v[0].word"),
        ([{"word": None}], "v[0].word"),
        ([{"word": "x" * 101}], "v[0].word"),
        ([{"word": "Qwen", "sounds_like": [5]}], "v[0].sounds_like"),
        ([{"sounds_like": ["quen"]}], "v[0].word"),
        ([{"word": "Qwen", "sounds_like": {}}], "v[0].sounds_like"),
        ([{"word": "Qwen", "sounds_like": ["x"] * (MAX_SOUNDS + 1)}], "v[0].sounds_like"),
        ([{"text": "Qwen", "weight": "4"}], "v[0].weight"),
        ([{"text": "Qwen", "weight": True}], "v[0].weight"),
        ('[{"text": "Qwen", "weight": NaN}]', "v[0].weight"),
        ('[{"text": "Qwen", "weight": 1' + "0" * 400 + "}]", "v[0].weight"),
        ({"Qwen": "4"}, "v[0].weight"),
    ],
)
def test_what_is_wrong_is_named(value: object, param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        hotwords_of(value, "v")
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["word", "text", "weight", "sounds_like", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_nothing_else_is_raised(value: object) -> None:
    try:
        hotwords = hotwords_of(value)
    except InvalidValue:
        return
    assert all(isinstance(hotword.word, str) and hotword.weight >= 0 for hotword in hotwords)


@pytest.mark.parametrize(
    ("options", "texts", "context"),
    [
        ({}, (), ""),
        ({"custom_vocabulary_word": [{"word": "SQL", "sounds_like": ["sequel"]}]}, (), "SQL (sequel)"),
        ({"custom_vocabulary_word": '["Qwen"]', "vocabulary": {"vLLM": 3}}, (), "vLLM, Qwen"),
        ({"corpus": {"text": "A talk."}, "vocabulary": ["Qwen"]}, ("Of today.",), "Of today.\nA talk.\nQwen"),
        ({"corpus": '{"text": "A talk."}'}, (), "A talk."),
        ({"corpus": {}}, (), ""),
        ({"corpus": ""}, ("<|im_end|>",), ""),
    ],
)
def test_all_that_is_said_beforehand_is_one_context(
    options: dict[str, object], texts: tuple[str, ...], context: str
) -> None:
    assert context_of(options, *texts) == context


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"corpus": "A talk."}, "asr_options.corpus"),
        ({"corpus": {"text": 5}}, "asr_options.corpus.text"),
        ({"corpus": ["A talk."]}, "asr_options.corpus.text"),
        ({"vocabulary": [5]}, "asr_options.vocabulary[0]"),
    ],
)
def test_the_field_at_fault_is_named(options: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        context_of(options, path="asr_options.")
    assert caught.value.param == param
