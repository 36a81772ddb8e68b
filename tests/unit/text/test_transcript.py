from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import Word
from qwen3_asr_server.text.transcript import Segment, Transcript, merge_overlapping


def words(*texts, start=0, step=1000):
    return tuple(Word(text, start + n * step, start + (n + 1) * step) for n, text in enumerate(texts))


def test_the_text_is_joined_as_scripts_want_it():
    segments = (Segment("Hello.", 0, 1), Segment("你好。", 2, 3), Segment("再见。", 4, 5), Segment("Bye", 6, 7))
    assert Transcript(segments, 8).text == "Hello.你好。再见。Bye"
    assert Transcript((Segment("one", 0, 1), Segment("two", 1, 2)), 8).text == "one two"


def test_the_language_is_the_one_spoken_longest():
    segments = (Segment("a", 0, 10, language="en"), Segment("b", 10, 15, language="zh"), Segment("c", 15, 40))
    assert Transcript(segments, 40).language == "en"
    assert Transcript(segments[2:], 40).language is None
    assert Transcript((), 40).language is None


def test_confidence_is_that_of_all_or_unknown():
    sure, unsure, unknown = (
        Segment("a", 0, 30, confidence=1.0),
        Segment("b", 30, 40, confidence=0.6),
        Segment("c", 0, 1),
    )
    assert Transcript((sure, unsure), 40).confidence == 0.9
    assert Transcript((sure, unknown), 40).confidence is None
    assert Transcript((), 40).confidence is None


def test_channels():
    segments = (Segment("a", 0, 1), Segment("b", 1, 2, channel=1), Segment("c", 2, 3))
    transcript = Transcript(segments, 3, channels=(0, 1, 2))
    assert transcript.of_channel(1) == Transcript((segments[1],), 3, channels=(1,))
    assert transcript.of_channel(2) == Transcript((), 3, channels=(2,))


def test_words_of_all_channels_are_in_the_order_of_time():
    long = Segment("one two three", 0, 3000, words=words("one", "two", "three"))
    within = Segment("yes no", 1000, 2500, channel=1, words=words("yes", "no", start=1000, step=750))
    transcript = Transcript((long, within), 3000, channels=(0, 1))
    assert [(channel, word.text) for channel, word in transcript.words] == [
        (0, "one"),
        (0, "two"),
        (1, "yes"),
        (1, "no"),
        (0, "three"),
    ]


def test_what_two_neighbours_heard_stands_once_with_its_words():
    left = Segment("we went to the mark", 0, 5000, words=words("we", "went", "to", "the", "mark"))
    right = Segment("the market at noon", 4000, 8000, words=words("the", "market", "at", "noon", start=3000))
    left, right = merge_overlapping(left, right)
    assert (left.text, right.text) == ("we went to the", "market at noon")
    assert [word.text for word in left.words + right.words] == ["we", "went", "to", "the", "market", "at", "noon"]


def test_a_word_only_the_right_one_heard_keeps_its_time_before_the_cut():
    left = Segment("we went to", 0, 5000, words=words("we", "went", "to"))
    right = Segment("to the market", 4000, 8000, words=words("to", "the", "market", start=3500, step=700))
    left, right = merge_overlapping(left, right)
    assert [word.text for word in right.words] == ["the", "market"]
    assert right.words[0].start < 5000
    bounded = left.bounded(0, 9000)
    assert right.bounded(bounded.end, 9000).words == right.words


def test_words_that_are_no_units_are_parted_at_the_cut():
    left = Segment("it's one two", 0, 3000, words=words("it", "is", "one", "two", step=750))
    right = Segment("two three", 2000, 5000, words=words("two", "three", start=2000))
    left, right = merge_overlapping(left, right)
    assert [word.text for word in left.words + right.words] == ["it", "is", "one", "two", "three"]


def test_without_words_only_the_texts_are_merged():
    left, right = merge_overlapping(Segment("a b c", 0, 10), Segment("c d", 8, 20))
    assert (left.text, right.text, left.words, right.words) == ("a b c", "d", (), ())


TIMES = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 40)), max_size=6)


@given(TIMES, st.integers(0, 120), st.integers(0, 99), st.integers(1, 50), st.integers(0, 60))
def test_bounded_times_are_in_order(times, floor, start, length, more):
    given_words = tuple(Word("w", at, at + long) for at, long in times)
    segment = Segment("w", start, start + length, words=given_words).bounded(floor, floor + more)
    marks = [floor, segment.start, *(t for w in segment.words for t in (w.start, w.end)), segment.end]
    assert marks == sorted(marks)
    assert segment.start < segment.end
    assert len(segment.words) == len(times)
    assert all(word.end <= floor + more for word in segment.words)


@given(st.integers(0, 50), st.integers(1, 50))
def test_times_in_order_stay_as_they_are(start, length):
    segment = Segment("w", start, start + length, words=(Word("w", start, start + length),))
    assert segment.bounded(start, start + length) == segment
