"""The sentences of a task, as `result-generated` shows them: one after the other, each as a whole every time.

What is told of a sentence waits until the one before it has ended. Knows no task and no connection; used by
`dashscope_inference`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen3_asr_server.domain import Word, ms_of_samples
from qwen3_asr_server.messages import Final, Partial
from qwen3_asr_server.text.special_words import SpecialWords, finished, timed_words

Payload = dict[str, Any]
"""The `payload` of a `result-generated`."""


@dataclass(slots=True)
class _Sentence:
    """An utterance that has begun and whose final has not been told."""

    begin_ms: int
    end_ms: int | None = None
    number: int | None = None
    """None until something is told of it."""
    held: Partial | None = None
    """Told once the sentences before it have ended."""


class Sentences:
    """All sentences of one task.

    Args:
        special_words: what is hidden or left out in them.
    """

    def __init__(self, special_words: SpecialWords) -> None:
        self._special_words = special_words
        self._open: dict[int, _Sentence] = {}
        self._told = 0

    def start(self, item: int, at: int) -> None:
        """Begin a sentence at a sample of the session clock."""
        self._open[item] = _Sentence(ms_of_samples(at))

    def stop(self, item: int, at: int) -> None:
        """Note where its speech ended."""
        self._open[item].end_ms = ms_of_samples(at)

    def partial(self, partial: Partial) -> Iterator[Payload]:
        """Yield the interim result, unless it is empty or has to wait."""
        sentence = self._open.get(partial.item)
        text = finished(self._special_words.marked(partial.stable + partial.unstable))
        if sentence is None or not text:
            return
        if partial.item == next(iter(self._open)):
            yield self._result(sentence, end_time=None, text=text, words=[], sentence_end=False)
        else:
            sentence.held = partial

    def final(self, final: Final) -> Iterator[Payload]:
        """Yield the final result, and what has waited for it. A noise of which nothing was told is no sentence."""
        sentence = self._open[final.item]
        text = finished(self._special_words.marked(final.text))
        if text or sentence.number is not None:
            end_ms = sentence.begin_ms if sentence.end_ms is None else sentence.end_ms
            timed = timed_words(final.text, final.words or (), self._special_words)
            words = [_word(*word, sentence.begin_ms, end_ms) for word in timed]
            yield self._result(sentence, end_time=end_ms, text=text, words=words, sentence_end=True)
        yield from self.forget(final.item)

    def forget(self, item: int) -> Iterator[Payload]:
        """Drop a sentence; yield what has waited for its end."""
        self._open.pop(item, None)
        following = next(iter(self._open.values()), None)
        if following is not None and following.held is not None:
            yield from self.partial(following.held)

    def _result(self, sentence: _Sentence, *, end_time: int | None, **fields: Any) -> Payload:
        begins = sentence.number is None
        if begins:
            self._told += 1
            sentence.number = self._told
        shown = {
            "sentence_id": sentence.number,
            "begin_time": sentence.begin_ms,
            "end_time": end_time,
            "sentence_begin": begins,
            "heartbeat": False,
        }
        usage = None if end_time is None else {"duration": -(-end_time // 1000)}
        return {"output": {"sentence": shown | fields}, "usage": usage}


def _word(word: Word, text: str, punctuation: str, begin_ms: int, end_ms: int) -> dict[str, Any]:
    """Return a word within its sentence, whose begin was told before its words were known."""
    begin, end = (min(max(ms_of_samples(at), begin_ms), end_ms) for at in (word.start, word.end))
    return {"begin_time": begin, "end_time": end, "text": text, "punctuation": punctuation}
