import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.text.context import (
    CONTEXT_CHARS,
    INITIAL_CHARS,
    PREVIOUS_CHARS,
    Hotword,
    last_chars,
    render_context,
    with_previous,
)
from qwen3_asr_server.text.guard import leaks_context


@pytest.mark.parametrize(
    ("texts", "hotwords", "context"),
    [
        ([], [], ""),
        (["  A talk about fruit. "], [], "A talk about fruit."),
        (["one", "", "two"], [], "one\ntwo"),
        ([], [Hotword("不二家", ["bu er jia"])], "不二家 (bu er jia)"),
        ([], [Hotword("Qwen"), Hotword("vLLM")], "Qwen, vLLM"),
        ([], [Hotword("Qwen", weight=1), Hotword("vLLM", weight=5)], "vLLM, Qwen"),
        ([], [Hotword("Qwen"), Hotword("qwen"), Hotword(" Qwen ")], "Qwen"),
        ([], [Hotword("SQL", ["sequel", "", "ess queue ell"])], "SQL (sequel, ess queue ell)"),
        (["Fruit."], [Hotword("durian")], "Fruit.\ndurian"),
        ([], [Hotword("", ["nothing"]), Hotword("<|im_end|>"), Hotword("x" * 101)], ""),
        (["<|im_start|>system"], [Hotword("a\nb")], "system\na b"),
    ],
)
def test_what_users_say_becomes_one_text(texts, hotwords, context):
    assert render_context(texts, hotwords) == context


def test_hotwords_are_kept_whole_and_before_texts():
    words = [Hotword("alpha", weight=1), Hotword("beta", weight=3), Hotword("gamma", weight=2)]
    assert render_context(["a long text"], words, 11) == "beta, gamma"
    assert render_context(["a long text"], words, 17) == "a lon\nbeta, gamma"
    assert render_context(["a long text"], words, 9) == "a lo\nbeta"


def test_the_end_of_a_text_begins_with_a_whole_word():
    assert last_chars("hello world, this is a test", 12) == "is a test"
    assert last_chars("今天天气很好，我们去公园", 5) == "我们去公园"
    assert last_chars("short", 12) == "short"
    assert last_chars("Donaudampfschifffahrt", 8) == "ifffahrt"


def test_of_megabytes_only_what_counts_is_read():
    long = "<>a " * 5_000_000
    began = time.process_time()
    assert len(render_context([long])) == CONTEXT_CHARS - 1
    assert with_previous("", long, carried=5000).endswith("<>a <>a")
    assert time.process_time() - began < 1


def test_the_previous_text_follows_what_the_user_gave():
    assert with_previous("Qwen, vLLM", "Good morning.") == "Qwen, vLLM\nGood morning."
    assert with_previous("", "Good morning.") == "Good morning."
    assert with_previous("Qwen", "") == "Qwen"
    assert with_previous("", "word " * 100, carried=1000) == ("word " * 100).strip()
    assert len(with_previous("x" * 20_000, "word " * 100)) <= CONTEXT_CHARS


@pytest.mark.parametrize("carried", [PREVIOUS_CHARS, INITIAL_CHARS])
def test_a_long_text_pushes_no_hotwords_out(carried):
    listed = ", ".join(f"word{number}" for number in range(100))
    context = render_context(["x " * 20_000], [Hotword(word) for word in listed.split(", ")])
    *texts, hotwords, previous = with_previous(context, "so far " * 2000, carried=carried).splitlines()
    assert (hotwords, previous) == (listed, last_chars("so far " * 2000, carried))
    assert len("\n".join([*texts, hotwords, previous])) in range(CONTEXT_CHARS - 1, CONTEXT_CHARS + 1)


def test_of_too_many_hotwords_the_heaviest_stay():
    context = render_context(["A talk."], [Hotword("b" * 100, weight=1), Hotword("a" * 100, weight=2)])
    assert with_previous(context, "before " * 30, 300).startswith("a" * 100)


TEXT = st.text(st.sampled_from("ab <|>\n,()你\u0301im_end"), max_size=60)


@given(
    st.lists(TEXT, max_size=3),
    st.lists(st.builds(Hotword, TEXT, st.lists(TEXT, max_size=2)), max_size=5),
    st.integers(0, 80),
)
def test_no_context_is_too_long(texts, hotwords, most):
    assert len(render_context(texts, hotwords, most)) <= most
    for text in texts:
        assert len(last_chars(text)) <= PREVIOUS_CHARS
        for context in ("a", render_context(texts, hotwords)):
            assert len(with_previous(context, text, most)) <= most


def test_a_recited_list_of_hotwords_is_seen_as_a_leak():
    context = render_context(
        [], [Hotword(word) for word in ("durian", "rambutan", "longan", "salak", "pomelo", "yuzu")]
    )
    assert leaks_context("Durian, rambutan, longan, salak, pomelo, yuzu.", context)
    assert not leaks_context("I like durian and pomelo best of all.", context)


FRUIT = {
    "durian": "doo ree an",
    "rambutan": "ram boo tan",
    "longan": "long an",
    "salak": "sa lak",
    "pomelo": "po me lo",
    "yuzu": "you zoo",
}
BRANDS = {
    "不二家": "bu er jia",
    "通义千问": "tong yi qian wen",
    "百炼": "bai lian",
    "灵积": "ling ji",
    "阿里云": "a li yun",
}


@pytest.mark.parametrize("words", [FRUIT, BRANDS])
def test_a_list_is_recited_with_its_sounds_or_without(words):
    context = render_context(["A talk."], [Hotword(word, [sounds]) for word, sounds in words.items()])
    assert leaks_context(context.splitlines()[1], context)
    assert leaks_context("、".join(words), context)
    assert leaks_context(" ".join(words.values()), context)
    word, sounds = next(iter(words.items()))
    assert not leaks_context(word, context)
    assert not leaks_context(sounds, context)
    assert not leaks_context(f"We sell {word} here.", context)
