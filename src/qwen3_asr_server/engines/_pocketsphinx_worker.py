"""A decoder process of the embedded engine: `python -m qwen3_asr_server.engines._pocketsphinx_worker`.

PocketSphinx holds the interpreter's lock while it decodes, so each decoder has a process. It reads requests
from standard input, one utterance at a time, answers on standard output, and ends when its input does. On
Linux the kernel also kills it when its parent dies. It knows nothing about sessions, streams or pools.
"""

import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, BinaryIO, Final

from qwen3_asr_server.engines._pocketsphinx_wire import HEADER, MAX_BODY_BYTES, READY, Ask, Report, Told, message

if TYPE_CHECKING:
    from pocketsphinx import Decoder

CEPSTRAL_MEAN: Final = "56.67,5.24,9.90,10.61,1.98,2.95,-4.63,5.39,2.59,0.25,-2.50,-1.42,2.04"
"""Where every utterance starts its channel estimate, written by `scripts/compute_cmn.py`.

A decoder otherwise keeps the mean of what it heard last, and one session's voice would change another's text.
The recordings it is computed from are not among the test data.
"""

GAUSSIANS: Final = 8
"""Densities evaluated per frame and codebook. The library's default is 4; on prompts that are not test data 8 make 3 %
fewer errors for about a fifth more time."""

CHUNK_BYTES: Final = 2 * 1280
"""80 ms. Audio is always cut here, counted from the start of the utterance: the decoder's result depends on
where its input was cut, and must not depend on when the requests came."""


def main() -> None:
    """Serve requests until standard input ends."""
    _die_with_parent()
    requests, answers = _take_over_pipes()
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16_000, topn=GAUSSIANS, loglevel="FATAL")
    utterance = Utterance(decoder)
    _send(answers, message(READY, Told.HEARD))
    while (request := _receive(requests)) is not None:
        number, ask, audio = request
        try:
            body = utterance.hear(audio, ask).to_body()
        except (RuntimeError, ValueError) as problem:
            _send(answers, message(number, Told.FAILED, type(problem).__name__.encode()))
        else:
            _send(answers, message(number, Told.HEARD, body))


class Utterance:
    """The utterance a decoder is in, fed in fixed chunks."""

    def __init__(self, decoder: "Decoder") -> None:
        self._decoder = decoder
        self._open = False
        self._rest = b""

    def hear(self, audio: bytes, ask: Ask) -> Report:
        """Feed the decoder and report.

        Args:
            audio: s16le, mono, 16 kHz. What does not fill a chunk waits for the next call or the end.
            ask: whether to start afresh before, and whether to end the utterance after.
        """
        if ask & Ask.RESTART or not self._open:
            self._begin()
        audio = self._rest + audio
        whole = len(audio) - len(audio) % CHUNK_BYTES
        for start in range(0, whole, CHUNK_BYTES):
            self._decoder.process_raw(audio[start : start + CHUNK_BYTES])
        self._rest = audio[whole:]
        if ask & Ask.FINISH:
            self._end()
            return self._report(ended=True)
        return self._report(ended=False)

    def _begin(self) -> None:
        if self._open:
            self._decoder.end_utt()
        self._rest = b""
        self._decoder.set_cmn(CEPSTRAL_MEAN)
        with warnings.catch_warnings():
            # The library calls this unnecessary; measured, it is what makes the decoder forget the last noise floor.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._decoder.start_stream()
        self._decoder.start_utt()
        self._open = True

    def _end(self) -> None:
        if self._rest:
            self._decoder.process_raw(self._rest)
        self._open = False
        self._decoder.end_utt()

    def _report(self, *, ended: bool) -> Report:
        hypothesis = self._decoder.hyp()
        if hypothesis is None or not hypothesis.hypstr:
            return Report("", [])
        words: list[tuple[str, int, int, float | None]] = []
        for segment in self._decoder.seg() or ():
            word = _plain(segment.word)
            if word:
                # Only a finished utterance has a lattice and with it posteriors; sums of logs overshoot 1 a little.
                posterior = min(1.0, segment.prob) if ended else None
                words.append((word, segment.start_frame, segment.end_frame, posterior))
        return Report(hypothesis.hypstr, words)


def _plain(word: str) -> str:
    """Return a dictionary entry as a word: `to(2)` is `to`; silence and noise marks are nothing."""
    if word.startswith(("<", "[", "+")):
        return ""
    return word.partition("(")[0]


def _die_with_parent() -> None:
    # The parent decides when to stop: a signal to the whole group must not take a decoder from a server that drains.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep standard output for answers: whatever the library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, answers


def _receive(requests: BinaryIO) -> tuple[int, Ask, bytes] | None:
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    number, ask, length = HEADER.unpack(header)
    if length > MAX_BODY_BYTES:
        return None
    body = requests.read(length)
    return (number, Ask(ask), body) if len(body) == length else None


def _send(answers: BinaryIO, data: bytes) -> None:
    try:
        answers.write(data)
        answers.flush()
    except BrokenPipeError:
        sys.exit()


if __name__ == "__main__":
    main()
