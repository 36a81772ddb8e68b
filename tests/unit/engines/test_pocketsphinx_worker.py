"""What a decoder process does with its decoder, without a process: a decoder that writes down its calls."""

import io
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.engines._pocketsphinx_wire import HEADER, MAX_BODY_BYTES, Ask, message
from qwen3_asr_server.engines._pocketsphinx_worker import CEPSTRAL_MEAN, CHUNK_BYTES, Utterance, _receive


@dataclass
class WritingDecoder:
    """Stands in for PocketSphinx."""

    calls: list[Any] = field(default_factory=list)
    hypothesis: Any = None
    segments: Any = None

    def set_cmn(self, mean: str) -> None:
        self.calls.append(("mean", mean))

    def start_stream(self) -> None:
        self.calls.append("forget noise")

    def start_utt(self) -> None:
        self.calls.append("start")

    def process_raw(self, audio: bytes) -> None:
        self.calls.append(audio)

    def end_utt(self) -> None:
        self.calls.append("end")

    def hyp(self) -> Any:
        return self.hypothesis

    def seg(self) -> Any:
        return self.segments


FRESH = [("mean", CEPSTRAL_MEAN), "forget noise", "start"]
CHUNK = bytes(CHUNK_BYTES)


@given(st.binary(max_size=5 * CHUNK_BYTES), st.lists(st.integers(0, 5 * CHUNK_BYTES), max_size=6))
def test_the_decoder_hears_the_same_chunks_however_the_audio_comes(audio: bytes, cuts: list[int]) -> None:
    decoder = WritingDecoder()
    utterance = Utterance(decoder)
    edges = [0, *sorted(min(cut, len(audio)) for cut in cuts), len(audio)]
    for start, end in itertools.pairwise(edges):
        utterance.hear(audio[start:end], Ask.NOTHING)
    utterance.hear(b"", Ask.FINISH)
    chunks = [audio[start : start + CHUNK_BYTES] for start in range(0, len(audio), CHUNK_BYTES)]
    assert decoder.calls == [*FRESH, *chunks, "end"]


def test_a_restart_drops_the_open_utterance_and_its_rest() -> None:
    decoder = WritingDecoder()
    utterance = Utterance(decoder)
    utterance.hear(CHUNK + b"rest", Ask.NOTHING)
    utterance.hear(CHUNK, Ask.RESTART)
    assert decoder.calls == [*FRESH, CHUNK, "end", *FRESH, CHUNK]


def test_after_an_end_a_new_utterance_begins_by_itself() -> None:
    decoder = WritingDecoder()
    utterance = Utterance(decoder)
    utterance.hear(CHUNK, Ask.FINISH)
    utterance.hear(CHUNK, Ask.NOTHING)
    assert decoder.calls == [*FRESH, CHUNK, "end", *FRESH, CHUNK]


@pytest.mark.parametrize(("ask", "posterior"), [(Ask.FINISH, 0.75), (Ask.NOTHING, None)])
def test_words_are_plain_and_have_a_posterior_only_at_the_end(ask: Ask, posterior: float | None) -> None:
    names = ["<s>", "to(2)", "<sil>", "[NOISE]", "++UM++", "go", "</s>"]
    segments = [SimpleNamespace(word=name, start_frame=i, end_frame=i, prob=0.75) for i, name in enumerate(names)]
    report = Utterance(WritingDecoder(hypothesis=SimpleNamespace(hypstr="to go"), segments=segments)).hear(CHUNK, ask)
    assert report.text == "to go"
    assert report.words == [("to", 1, 1, posterior), ("go", 5, 5, posterior)]


def test_a_posterior_is_a_probability() -> None:
    segment = SimpleNamespace(word="go", start_frame=0, end_frame=1, prob=1.002)
    decoder = WritingDecoder(hypothesis=SimpleNamespace(hypstr="go"), segments=[segment])
    assert Utterance(decoder).hear(CHUNK, Ask.FINISH).words == [("go", 0, 1, 1.0)]


@pytest.mark.parametrize("hypothesis", [None, SimpleNamespace(hypstr=""), SimpleNamespace(hypstr=None)])
def test_nothing_heard_is_an_empty_report(hypothesis: Any) -> None:
    report = Utterance(WritingDecoder(hypothesis=hypothesis)).hear(CHUNK, Ask.FINISH)
    assert (report.text, report.words) == ("", [])


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", HEADER.pack(1, 0, 10), HEADER.pack(1, 0, 10) + b"short", HEADER.pack(1, 0, MAX_BODY_BYTES + 1)],
    ids=["end", "half a header", "no body", "half a body", "absurd length"],
)
def test_broken_input_ends_the_process(data: bytes) -> None:
    assert _receive(io.BytesIO(data)) is None


def test_a_request_is_read_whole() -> None:
    source = io.BytesIO(message(7, Ask.RESTART | Ask.FINISH, b"ab") + message(8, Ask.NOTHING))
    assert _receive(source) == (7, Ask.RESTART | Ask.FINISH, b"ab")
    assert _receive(source) == (8, Ask.NOTHING, b"")
