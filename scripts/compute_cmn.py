"""Compute the cepstral mean that every utterance of the embedded engine starts from.

Needs Debian's `asterisk-core-sounds-en` and `asterisk-core-sounds-en-g722`. Hears every English prompt of at
least four words that is NOT in `tests/data/speech`, so that the test data stays unseen; only the mean of its
cepstra is kept, no audio and no text. Run as `uv run python scripts/compute_cmn.py` and put the line it prints into
`engines/_pocketsphinx_worker.py` as `CEPSTRAL_MEAN`.
"""

import gzip
import re
import warnings
from collections.abc import Iterator

import av
import numpy as np
from make_speech import FAMILIES, SOUNDS, TRANSCRIPTS
from pocketsphinx import Decoder

NOT_PLAIN_SPEECH = re.compile(r"[\[(]|\.\.\.")
"""Marks of sounds, of stage directions and of omissions."""
FEWEST_WORDS = 4
COEFFICIENTS = 13


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    total = np.zeros(COEFFICIENTS)
    samples = 0
    for audio in other_prompts():
        decoder.start_stream()
        decoder.start_utt()
        # As one block the decoder takes the exact mean of it; in pieces it would favour the last seconds.
        decoder.process_raw(audio, no_search=True, full_utt=True)
        decoder.end_utt()
        total += len(audio) // 2 * np.array([float(number) for number in decoder.get_cmn().split(",")])
        samples += len(audio) // 2
    print(f"{samples / 16_000:.0f} s")
    print(",".join(f"{number:.2f}" for number in total / samples))


def other_prompts() -> Iterator[bytes]:
    """Yield the audio of the prompts that are not test data, as s16le at 16 kHz."""
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8", errors="replace") as listing:
        for line in listing:
            name, colon, text = line.strip().partition(": ")
            path = SOUNDS / f"{name}.g722"
            if not colon or FAMILIES.fullmatch(name) or NOT_PLAIN_SPEECH.search(text) or not path.exists():
                continue
            if len(re.findall(r"\w+", text)) >= FEWEST_WORDS:
                with av.open(str(path), format="g722") as container:
                    yield b"".join(frame.to_ndarray().tobytes() for frame in container.decode(audio=0))


if __name__ == "__main__":
    main()
