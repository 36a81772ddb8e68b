"""Japanese and Korean are cut as the aligner's own code does it, with the real packages.

Collected by `make test-vllm` alone, in the environment of qwen-asr, which has nagisa, soynlp and the dictionary.
"""

import pytest
from qwen_asr.inference.qwen3_forced_aligner import Qwen3ForceAlignProcessor

from qwen3_asr_server.engines import _aligner_words
from qwen3_asr_server.engines._aligner_words import units_of

JAPANESE = ["今日はいい天気ですね。", "3時に東京駅で会いましょう!", "iPhoneで写真を撮る", "…", ""]
KOREAN = [
    "학교에 갑니다",
    "오늘은 날씨가 좋아요.",
    "저는 한국어를 공부합니다, iPhone15로",
    "“불을” 켜 주세요!",
    "…",
    "",
]


@pytest.mark.parametrize(
    ("text", "language", "name"),
    [(text, "ja", "Japanese") for text in JAPANESE] + [(text, "ko", "Korean") for text in KOREAN],
)
def test_texts_are_cut_as_the_models_own_code_does(text: str, language: str, name: str) -> None:
    theirs, _ = Qwen3ForceAlignProcessor().encode_timestamp(text, name)
    assert [unit.spoken for unit in units_of(text, language)] == theirs


def test_without_the_dictionary_korean_is_cut_at_its_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aligner_words, "_korean_scores", dict)
    monkeypatch.setattr(_aligner_words, "_korean_tokenizer", _aligner_words._korean_tokenizer.__wrapped__)
    units = units_of("오늘은 날씨가 좋아요.", "ko")
    assert [unit.shown for unit in units] == ["오늘은", "날씨가", "좋아요"]
