from collections.abc import Sequence

import pytest

from qwen3_asr_server.text.languages import (
    DIALECTS,
    WEIGHTS_ONLY_LANGUAGES,
    WIRE_LANGUAGES,
    Inertia,
    established,
    find,
)

ALL = (*WIRE_LANGUAGES, *WEIGHTS_ONLY_LANGUAGES, *DIALECTS)


def test_the_wire_has_the_documented_codes_in_their_order() -> None:
    documented = "zh yue en ja de ko ru fr pt ar it es hi id th tr uk vi cs da fil fi is ms no pl sv"
    assert [language.code for language in WIRE_LANGUAGES] == documented.split()
    assert {language.code for language in ALL if language.wire} == set(documented.split())


def test_the_weights_have_thirty_languages() -> None:
    names = (
        "Chinese English Cantonese Japanese Korean French German Spanish Portuguese Italian Arabic Russian Thai "
        "Vietnamese Indonesian Turkish Hindi Malay Dutch Swedish Danish Finnish Polish Czech Filipino Persian Greek "
        "Romanian Hungarian Macedonian"
    )
    assert {language.name for language in ALL if language.weights} == set(names.split())


def test_the_two_lists_differ_where_expected() -> None:
    assert {language.code for language in ALL if language.wire and not language.weights} == {"uk", "is", "no"}
    assert {language.code for language in WEIGHTS_ONLY_LANGUAGES} == {"nl", "fa", "el", "ro", "hu", "mk"}


def test_there_are_fifty_two_for_the_weights_menu() -> None:
    assert len(DIALECTS) == 22
    assert sum(language.weights or language.dialect_of is not None for language in ALL) == 52


def test_a_dialect_is_forced_as_its_language() -> None:
    assert {dialect.forced_code for dialect in DIALECTS} == {"zh", "yue"}
    assert not any(dialect.weights or dialect.wire for dialect in DIALECTS)
    assert all(language.forced_code == language.code for language in WIRE_LANGUAGES)


def test_no_key_means_two_languages() -> None:
    keys = [key for language in ALL for key in {language.code, language.name.lower(), *language.aliases}]
    assert len(keys) == len(set(keys))
    assert all(key == key.lower() for key in keys)


@pytest.mark.parametrize("language", ALL, ids=lambda language: language.code)
def test_every_spelling_finds_it(language: object) -> None:
    for text in (language.code, language.name, *language.aliases):  # type: ignore[attr-defined]
        assert find(text) is language
        assert find(f" {text.upper()} ") is language


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en-US", "en"),
        ("en_gb", "en"),
        ("zh-CN", "zh"),
        ("zh-Hans", "zh"),
        ("zh-Hant-TW", "zh"),
        ("zh-HK", "yue"),
        ("zh-Hant-HK", "yue"),
        ("yue-Hant-HK", "yue"),
        ("es-419", "es"),
        ("nb-NO", "no"),
        ("tl-PH", "fil"),
        ("fil_PH", "fil"),
    ],
)
def test_regions_and_scripts_do_not_matter(text: str, code: str) -> None:
    found = find(text)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    "text", ["", "auto", "xx", "xx-US", "en-", "-", "english please", "en-US-x-y", "zh-x-nowhere", "e", "1"]
)
def test_what_is_no_language_is_not_found(text: str) -> None:
    assert find(text) is None


@pytest.mark.parametrize(
    ("languages", "expected"),
    [
        ((), None),
        (("en",), None),
        (("en", "en"), "en"),
        (("zh", "zh", "en"), None),
        (("zh", "en", "en"), "en"),
        (("en", "zh", "en", "zh"), None),
    ],
)
def test_two_texts_in_a_row_establish_a_language(languages: Sequence[str], expected: str | None) -> None:
    assert established(languages) == expected


@pytest.mark.parametrize(
    ("detected", "speech_s", "chance", "held"),
    [
        ("zh", 0.4, 0.5, True),
        ("zh", 0.4, None, True),
        ("zh", 0.4, 0.9, False),
        ("zh", 1.0, 0.1, False),
        ("en", 0.4, 0.1, False),
        (None, 0.4, 0.1, False),
    ],
    ids=["short and unsure", "short, nobody knows how sure", "sure", "long enough", "the expected one", "silence"],
)
def test_a_short_answer_needs_clear_evidence(
    detected: str | None, speech_s: float, chance: float | None, held: bool
) -> None:
    assert Inertia(short_speech_s=1.0, clear_chance=0.9).holds("en", detected, speech_s, chance) is held
