"""`Recognition` of the unmodified SDK, with everything that it calls back written down.

Between `start` and `stop` the SDK receives only while it sends: it waits for the next packet with its event loop
standing still. Who waits here hands it empty packets, which it does not send.

Knows the SDK and the recording of `recorded_sdk`; needs neither the server nor any particular SDK version.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dashscope.audio.asr import Recognition, RecognitionCallback, RecognitionResult
from dashscope.common.error import InvalidParameter

from support import speech
from support.recorded_sdk import WORDS, WORST_WER

MODEL = "fun-asr-realtime"
PACKET_BYTES = 3200
"""100 ms at 16 kHz: what the vendor's samples send."""
WAIT_S = 20.0
TWO_SENTENCES = {"max_sentence_silence": 600}
"""The recording has 1.2 s between its sentences."""
CONTEXT = {"context": [{"role": "user", "content": [{"type": "input_text", "text": "Conferences and queues."}]}]}

Sentence = dict[str, Any]


class Listener(RecognitionCallback):  # type: ignore[misc]
    """Keep what is called, in order, and let the test wait for some of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.results: list[RecognitionResult] = []
        self.failures: list[RecognitionResult] = []
        self.nudge: Callable[[], None] | None = None
        """Lets the SDK receive."""
        self._changed = threading.Condition()

    def on_open(self) -> None:
        self._note("open")

    def on_event(self, result: RecognitionResult) -> None:
        self.results.append(result)
        self._note("event")

    def on_complete(self) -> None:
        self._note("complete")

    def on_error(self, result: RecognitionResult) -> None:
        self.failures.append(result)
        self._note("error")

    def on_close(self) -> None:
        self._note("close")

    @property
    def sentences(self) -> list[Sentence]:
        """Every snapshot of a sentence."""
        return [result.get_sentence() for result in self.results]

    @property
    def finals(self) -> list[Sentence]:
        return [sentence for sentence in self.sentences if RecognitionResult.is_sentence_end(sentence)]

    def wait_for(self, call: str, count: int = 1) -> None:
        """Wait for the `count`-th call of a name."""
        self._wait(lambda: self.calls.count(call) >= count, call)

    def wait_for_sentence(self, number: int) -> None:
        """Wait until something was told of a sentence."""
        self._wait(lambda: any(sentence["sentence_id"] == number for sentence in self.sentences), f"sentence {number}")

    def _note(self, call: str) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            while not condition():
                if time.monotonic() > deadline:
                    raise AssertionError(f"waited {WAIT_S} s for {what}; got {self.calls}")
                if self.nudge is not None:
                    self.nudge()
                self._changed.wait(0.02)


@contextmanager
def recognition(**options: Any) -> Iterator[tuple[Recognition, Listener]]:
    """Make a recogniser of pcm at 16 kHz, and leave no thread of it behind."""
    listener = Listener()
    client = Recognition(**{"model": MODEL, "format": "pcm", "sample_rate": 16_000, **options}, callback=listener)

    def nudge() -> None:
        with suppress(InvalidParameter):  # it has stopped
            client.send_audio_frame(b"")

    listener.nudge = nudge
    try:
        yield client, listener
    finally:
        with suppress(InvalidParameter):
            client.stop()
        if client._silence_timer is not None:  # a failure leaves it running, for 23 s
            client._silence_timer.cancel()


def send(client: Recognition, pcm: bytes, packet_bytes: int = PACKET_BYTES) -> None:
    """Send audio as fast as it goes."""
    for start in range(0, len(pcm), packet_bytes):
        client.send_audio_frame(pcm[start : start + packet_bytes])


def text_of(sentences: list[Sentence]) -> str:
    """Return what was said."""
    return " ".join(sentence["text"] for sentence in sentences)


def assert_sentences(finals: list[Sentence], words: str = WORDS, worst: float = WORST_WER) -> None:
    """Check that finals are numbered, in order of time, with words inside, and say about what was said."""
    assert speech.wer(words, text_of(finals)) <= worst
    assert [sentence["sentence_id"] for sentence in finals] == list(range(1, len(finals) + 1))
    assert all(sentence["sentence_end"] is True and sentence["heartbeat"] is False for sentence in finals)
    times = [sentence[name] for sentence in finals for name in ("begin_time", "end_time")]
    assert times == sorted(set(times))
    for sentence in finals:
        inside = [word[name] for word in sentence["words"] for name in ("begin_time", "end_time")]
        assert inside == sorted(inside)
        assert sentence["begin_time"] <= inside[0] < inside[-1] <= sentence["end_time"]
        assert " ".join(word["text"] + word["punctuation"] for word in sentence["words"]) == sentence["text"]
