import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.text.guard import Loop, Suspicion, find_loop, has_raw_tags, judge, leaks_context

REAL_SPEECH = [
    "",
    "Hello there.",
    "No no no, that is not what I meant.",
    "No, no, no, no, no, no, no, no, no, no!",
    "Ha ha ha ha ha ha ha ha, very funny.",
    "ha" * 12,
    "Hahahahahahaha.",
    "Bye bye. Bye bye. Bye bye. Bye bye.",
    "My number is 000 0000.",
    "It is 0000 0000 0000 0000, and the code is 111 111.",
    "That makes 1000000000000 euros.",
    "La la la la la la la la la la, all night long.",
    "na na na na na na na na na na na na na na na na Batman",
    "Happy birthday to you, happy birthday to you, happy birthday dear Ann, happy birthday to you.",
    "Four more years! Four more years! Four more years! Four more years! Four more years!",
    "We will, we will rock you. We will, we will rock you.",
    "Row, row, row your boat gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "I had had enough of what he had had, and that that is, is.",
    "Buffalo buffalo Buffalo buffalo buffalo buffalo Buffalo buffalo.",
    "Call 555 0199 now. That is 555 0199. Again, 555 0199.",
    "Wait ... wait ...... I know!!!",
    "对对对对对对对对，没错。",
    "好的好的好的好的，谢谢谢谢。",
    "哈哈哈哈哈哈哈哈哈哈哈哈，太好笑了。",
    "没有没有没有没有没有，你听我说。",
    "一二三四，二二三四，三二三四，四二三四。",
    "嗯嗯嗯，加油加油加油加油加油！",
    "我的电话是零零零零零零零零。",
    "高高兴兴上班，平平安安回家。高高兴兴上班，平平安安回家。",
    "はいはいはいはい、わかりました。",
    "ありがとうございます。ありがとうございます。ありがとうございます。",
    "นาน ๆ ไปนะ",
]

SENTENCE = "the meeting will begin at nine and everybody who has not been told the room should ask me "
LOOPS = [
    # One character, or a short pattern, twenty times: anywhere.
    ("a" * 20, 20),
    ("yes " + "0" * 21 + " and more", 21),
    ("well " + "ha" * 20 + " that is all", 20),
    ("!" * 30, 30),
    ("So " + "you know, " * 20 + "that is it.", 20),
    ("Now, " + "twenty characters, ." * 20 + "Done.", 20),
    ("他说" + "好的" * 25 + "然后走了", 25),
    # Longer patterns fewer times, where the text ends.
    ("Well, " + "I think so, " * 9, 9),
    ("thank you for watching " * 8, 8),
    ("Thank you. THANK YOU for watching! " + "Thank you, for watching. " * 8, 9),
    ("And now: " + "please subscribe to my channel and press the bell. " * 5, 5),
    ("So " + SENTENCE * 4, 4),
    ("Start. " + SENTENCE * 4 + "the meeting will begin at", 4),
    ("大家好。" + "谢谢大家的收看，" * 8, 8),
    ("今天" + "我们来看看这个问题应该怎么解决才能让大家都满意。" * 4, 4),
    ("это было так, " * 9, 9),
]


RECORDED = [
    ("绿色" + " yes" * 7 + " left" + " yes" * 10 + " left" + " yes" * 20, Suspicion.LOOP),
    ("三" * 20, Suspicion.LOOP),
    (
        "关闭" * 13
        + "谢谢" * 8
        + "关闭" * 6
        + "谢谢" * 8
        + "关闭关闭绿色"
        + "谢谢" * 13
        + "绿色谢谢" * 3
        + "绿色" * 20,
        Suspicion.LOOP,
    ),
    ("关闭" * 13 + "绿色" * 20, Suspicion.LOOP),
    (" ".join(["three"] * 21), Suspicion.LOOP),
    (" None" * 20, Suspicion.LOOP),
    (" None<asr_text>", Suspicion.RAW_TAGS),
    ("yes" + " left" * 10, None),
    ("谢谢门窗户灯五", None),
]
"""What the tiny checkpoint has written in vLLM for tones, for a syllable said sixty times, and for noise."""


@pytest.mark.parametrize(("text", "suspicion"), RECORDED)
def test_what_a_model_has_written_is_judged(text: str, suspicion: Suspicion | None) -> None:
    assert judge(text, [], "", speech_s=27.0) is suspicion


@pytest.mark.parametrize("text", REAL_SPEECH)
def test_what_people_say_is_no_loop(text: str) -> None:
    assert find_loop(text) is None
    assert find_loop([ord(char) for char in text]) is None
    assert find_loop(list(text.encode())) is None
    assert judge(text, [], "", None) is None


@pytest.mark.parametrize(("text", "count"), LOOPS)
def test_what_nobody_says_is_a_loop(text: str, count: int) -> None:
    loop = find_loop(text)
    assert loop is not None
    assert loop.count == count
    assert judge(text, [], "", 60.0) is Suspicion.LOOP
    assert find_loop(text[: loop.first_end] + text[loop.end :]) is None


@pytest.mark.parametrize(
    ("ids", "loop"),
    [
        ([], None),
        ([7] * 19, None),
        ([7] * 20, Loop(0, 1, 20, 20)),
        ([1, 2] + [7] * 22 + [3], Loop(2, 3, 24, 22)),
        ([1, 2, 3] * 19, None),
        ([9] + [1, 2, 3] * 20 + [4, 5], Loop(1, 4, 61, 20)),
        (list(range(12)) * 7, None),
        ([99, *list(range(12)) * 8, 0, 1], Loop(1, 13, 99, 8)),
        ([*list(range(12)) * 8, 99], None),
        (list(range(50)) * 4, None),
        (list(range(51)) * 4, Loop(0, 51, 204, 4)),
        (list(range(500)) * 3, None),
    ],
)
def test_a_loop_of_ids(ids: list[int], loop: Loop | None) -> None:
    assert find_loop(ids) == loop


def test_repeated_ids_without_repeated_text_are_a_loop_too() -> None:
    assert judge("", [5] * 32, "", None) is Suspicion.LOOP


REFERENCE = re.compile(r"(.{1,20}?)\1{19}", re.DOTALL)
BABBLE = st.lists(
    st.tuples(st.text(alphabet="ab 好,", min_size=1, max_size=22), st.integers(1, 24)).map(
        lambda part: part[0] * part[1]
    ),
    max_size=4,
).map("".join)


@given(BABBLE)
def test_it_finds_all_that_the_reference_repairs(text: str) -> None:
    loop = find_loop(text)
    if REFERENCE.search(text):
        assert loop is not None
    if loop is not None:
        assert 0 <= loop.start < loop.first_end < loop.end <= len(text)
        assert loop.count >= 4


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 30), st.lists(st.integers(0, 3), max_size=5))
def test_a_loop_of_ids_repeats_from_its_start_to_its_end(pattern: list[int], times: int, before: list[int]) -> None:
    ids = before + pattern * times
    loop = find_loop(ids)
    if times >= 20:
        assert loop is not None
    if loop is not None:
        period = loop.first_end - loop.start
        assert all(ids[i] == ids[i + period] for i in range(loop.start, loop.end - period))
        assert loop.count == (loop.end - loop.start) // period


FIBONACCI = ["1", "0"]
while len(FIBONACCI[-1]) < 100_000:
    FIBONACCI.append(FIBONACCI[-1] + FIBONACCI[-2])


LENGTH = 100_000


@pytest.mark.parametrize(
    ("ids", "looped"),
    [
        ([0] * LENGTH, True),
        (list(range(LENGTH)), False),
        ([*[0] * LENGTH, 1], True),
        ([1, *[0] * 18] * (LENGTH // 19), True),
        (([*range(LENGTH // 4)] * 4)[1:], False),
        # The Fibonacci word holds every period that it can, but nothing four times in a row.
        ([int(digit) for digit in FIBONACCI[-1]], False),
    ],
    ids=["equal", "distinct", "almost equal", "periodic", "almost four times", "Fibonacci"],
)
def test_a_hundred_thousand_ids_take_linear_time(ids: list[int], looped: bool) -> None:
    # Comparing each place with each other one would take hours here.
    assert (find_loop(ids) is not None) is looped


@pytest.mark.parametrize("text", ["好" * LENGTH, "a " * LENGTH, FIBONACCI[-1].replace("1", "好"), "." * LENGTH + "a"])
def test_a_hundred_thousand_characters_take_linear_time(text: str) -> None:
    leaks_context(text, text[::-1])
    assert judge(text, [], "," * LENGTH, 1.0) in {Suspicion.LOOP, Suspicion.TOO_FAST}


HOTWORDS = "Qwen, DashScope, Aliyun, Bailian, Tongyi Lab, ModelScope, PAI"
PROSE = (
    "This is the weekly meeting of the platform team. We talk about the recogniser, the release next Monday, and why "
    "the build machines don't keep up with the number of changes."
)
WORD_LIST = "通义千问、阿里云、百炼、魔搭社区、达摩院、钉钉、飞书、语音识别"
TOPIC = "本次会议讨论语音识别服务的上线计划，参会人员包括平台组和算法组的全体同事。"
COMPANY = "阿里巴巴集团控股有限公司"


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (PROSE, PROSE),
        (PROSE.upper().replace(",", ""), PROSE),
        ("we talk about the recogniser the release next Monday and why the build machines don't", PROSE),
        ("Um, so: " + PROSE[: len(PROSE) // 2] + " yeah okay", PROSE),
        (HOTWORDS, HOTWORDS),
        ("qwen dashscope aliyun bailian tongyi lab modelscope", HOTWORDS),
        ("DashScope. Aliyun. Bailian. Tongyi Lab. ModelScope.", HOTWORDS),
        ("Qwen,DashScope,Aliyun", "Qwen,DashScope,Aliyun"),
        (WORD_LIST, WORD_LIST),
        ("通义千问，阿里云，百炼，魔搭社区", WORD_LIST),
        ("通义千问阿里云百炼魔搭社区", "通义千问 阿里云\n百炼 魔搭社区 达摩院"),
        (TOPIC, TOPIC),
        ("讨论语音识别服务的上线计划，参会人员包括平台组和算法组", TOPIC),
    ],
)
def test_a_recited_context_is_a_leak(text: str, context: str) -> None:
    assert leaks_context(text, context)
    assert judge(text, [], context, 60.0) is Suspicion.CONTEXT_LEAK


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("", HOTWORDS),
        ("Anything at all.", ""),
        ("…", "…"),
        ("DashScope", HOTWORDS),
        ("DashScope", "DashScope"),
        ("Tongyi Lab.", HOTWORDS),
        ("Qwen, DashScope", HOTWORDS),
        ("I asked Tongyi Lab about it.", HOTWORDS),
        ("We compared Qwen, DashScope, Aliyun and Bailian with the others yesterday.", HOTWORDS),
        ("Is it Bailian, Aliyun or DashScope?", HOTWORDS),
        ("Qwen, DashScope, Aliyun, Bailian, Tongyi", HOTWORDS),
        ("Qwen DashScope Aliyun Bailian Tongyi Lab is all theirs", HOTWORDS),
        ("We talk about the recogniser, the release next Monday", PROSE),
        ("I say “Qwen”, not “DashScope” or 'Aliyun-2.5'", "Do I say “Qwen”, not “DashScope” or 'Aliyun-2.5'"),
        ("this is the weekly meeting", PROSE),
        ("The build machines don't keep up with the number of changes", PROSE),
        ("We talk about the build, the release next Monday, and why nobody has tested the thing so far.", PROSE),
        ("我们用阿里云", WORD_LIST),
        ("通义千问、阿里云", WORD_LIST),
        (COMPANY, COMPANY),
        (COMPANY, f"{COMPANY}、{WORD_LIST}"),
        (f"我在{COMPANY}上班，今天去开会。", f"{COMPANY}、{WORD_LIST}"),
        ("今天讨论语音识别服务的上线计划", TOPIC),
        ("语音识别服务的上线计划已经推迟到下个月，参会人员请注意时间和地点的变化。", TOPIC),
    ],
)
def test_a_hotword_that_was_said_is_no_leak(text: str, context: str) -> None:
    assert not leaks_context(text, context)
    assert judge(text, [], context, 60.0) is None


@given(st.text(alphabet="ab, 好"), st.text(alphabet="ab, 好"))
def test_what_shares_no_word_with_the_context_is_no_leak(text: str, context: str) -> None:
    assert not leaks_context(text, context.translate({ord("a"): "x", ord("b"): "y", ord("好"): "你"}))


@given(st.lists(st.sampled_from(["one", "two", "three", "四", "五"]), min_size=24, max_size=40), st.data())
def test_a_long_stretch_of_the_context_is_always_a_leak(words: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(words) - 24))
    assert leaks_context(" ".join(words[start : start + 24]).title(), "; ".join(words))


@pytest.mark.parametrize(
    "text",
    ["<asr_text>", "a <|im_end|>", "one <|audio_", "end|> two", "asr_text>x", "<timestamp>", "</think>", "<|", "|>"],
)
def test_raw_tags_are_seen(text: str) -> None:
    assert has_raw_tags(text)
    assert judge(text, [], "", None) is Suspicion.RAW_TAGS


@pytest.mark.parametrize("text", ["", "a < b", "x > y", "a | b", "<b>bold</b>", "language English", "the timestamp"])
def test_other_signs_are_no_tags(text: str) -> None:
    assert not has_raw_tags(text)


@pytest.mark.parametrize(
    ("text", "speech_s", "suspicion"),
    [
        ("Thank you.", 0.0, Suspicion.TEXT_ON_SILENCE),
        ("嗯", 0.09, Suspicion.TEXT_ON_SILENCE),
        ("。", 0.0, None),
        ("", 0.0, None),
        ("No.", 0.1, None),
        ("Thank you.", None, None),
        ("好的", 0.16, None),
        # Fast but real: nine words a second, ten characters a second, digits in a row.
        ("Yes I know that I said that we would.", 1.0, None),
        ("我觉得这个事情应该没问题", 1.2, None),
        ("It costs 1000000 now.", 0.8, None),
        ("我觉得这个事情应该没问题但是我们还是要再看一看", 2.3, None),
        ("Thirty-two, please.", 0.2, None),
        ("धन्यवाद मैं आपकी बात समझ गया हूँ", 2.0, None),
        ("ขอบคุณมากครับ ผมเข้าใจแล้ว", 1.5, None),
        ("Thank you very much for watching, and see you in the next video.", 0.3, Suspicion.TOO_FAST),
        (SENTENCE * 2, 1.0, Suspicion.TOO_FAST),
        ("请不吝点赞订阅转发打赏支持明镜与点点栏目", 0.5, Suspicion.TOO_FAST),
    ],
)
def test_text_must_fit_the_speech(text: str, speech_s: float | None, suspicion: Suspicion | None) -> None:
    assert judge(text, [], "", speech_s) is suspicion


def test_the_gravest_suspicion_wins_and_the_limit_comes_last() -> None:
    assert judge("Fine.", [], "", 2.0, hit_limit=True) is Suspicion.HIT_LIMIT
    assert judge(PROSE, [], PROSE, 0.0, hit_limit=True) is Suspicion.TEXT_ON_SILENCE
    assert judge("yes " * 30, [], "", 0.0, hit_limit=True) is Suspicion.LOOP
    assert judge("<|im_end|>" * 30, [], "", 0.0, hit_limit=True) is Suspicion.RAW_TAGS


@given(st.text(), st.lists(st.integers(0, 200_000)), st.text(), st.none() | st.floats(0, 3600), st.booleans())
def test_judging_never_raises(text: str, ids: list[int], context: str, speech_s: float | None, hit_limit: bool) -> None:
    assert judge(text, ids, context, speech_s, hit_limit=hit_limit) in {None, *Suspicion}
