"""`make test-long`: hours of speech through the embedded engine, and how much memory that takes.

Loops the paragraph of `tests/data/speech` into one FLAC file, transcribes it as every door does, and watches the
memory of this process and all its children. Fails if it grows by more than `MOST_MEMORY_MB`, if more than
`MOST_DECODERS` work at once, or if audio or text is missing. Linux only.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.runtime.from_settings import media_limits
from qwen3_asr_server.runtime.media import open_media
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.session.recorded import TranscribeOptions

MOST_MEMORY_MB = 400
"""Above what the idle services take."""
MOST_DECODERS = 2
FEWEST_WORDS_A_MINUTE = 100
_CLIP = Path(__file__).resolve().parents[1] / "tests" / "data" / "speech" / "paragraphs" / "paragraph_75s.flac"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=180, help="length of the recording (default: 180)")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        length = write_looped(path, minutes * 60)
        print(f"{length / SAMPLE_RATE / 60:.1f} min of speech, {path.stat().st_size / 1e6:.0f} MB as FLAC", flush=True)
        return asyncio.run(transcribe(path, length))


def write_looped(path: Path, length_s: float) -> int:
    """Write whole clips until there is so much; return the length in samples."""
    with av.open(str(_CLIP)) as clip:
        speech = np.concatenate([frame.to_ndarray().reshape(-1) for frame in clip.decode(audio=0)])
    written = 0
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        while written < length_s * SAMPLE_RATE:
            for block in blocks_of(speech):
                frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), written
                container.mux(stream.encode(frame))
                written += len(block)
        container.mux(stream.encode(None))
    return written


def blocks_of(speech: npt.NDArray[np.int16]) -> Iterator[npt.NDArray[np.int16]]:
    """Yield a second at a time."""
    for start in range(0, len(speech), SAMPLE_RATE):
        yield speech[start : start + SAMPLE_RATE]


async def transcribe(path: Path, length: int) -> int:
    """Transcribe a file, print what that took, and return 1 if it was too much."""
    # This is about memory; other work may share the machine.
    settings = Settings(_env_file=None, engine="pocketsphinx", decode_timeout_s=60)
    services = Services(settings)
    await services.start()
    idle_mb, peak_mb, decoders, told_s = resident_mb(), 0.0, 0, 0.0

    def watch(done_s: float, total_s: float | None) -> None:
        nonlocal peak_mb, decoders, told_s
        peak_mb = max(peak_mb, resident_mb())
        decoders = max(decoders, services.stats()["scheduler"]["recorded_running"])
        if done_s >= told_s + 600:
            told_s = done_s
            print(f"{done_s / 60:.0f} min done: peak {peak_mb:.0f} MB, {peak_mb - idle_mb:.0f} above idle", flush=True)

    began = time.monotonic()
    try:
        async with open_media(path, media_limits(settings)) as media:
            transcript = await services.transcribe(media, TranscribeOptions(words=True), watch)
    finally:
        await services.stop()
    wall_s, length_s = time.monotonic() - began, transcript.duration / SAMPLE_RATE
    words_a_minute = len(transcript.words) / length_s * 60
    print(f"{length_s / 60:.1f} min in {wall_s / 60:.1f} min, RTF {wall_s / length_s:.2f}, {decoders} decoders at once")
    print(f"{len(transcript.segments)} segments, {words_a_minute:.0f} words a minute")
    print(f"memory: {idle_mb:.0f} MB idle, {peak_mb:.0f} MB peak, {peak_mb - idle_mb:.0f} MB above idle")
    small = peak_mb - idle_mb < MOST_MEMORY_MB and decoders <= MOST_DECODERS
    fine = small and transcript.duration == length and words_a_minute > FEWEST_WORDS_A_MINUTE
    print("fine" if fine else "FAILED", flush=True)
    return 0 if fine else 1


def resident_mb() -> float:
    """Return the memory of this process and all its descendants; what they share counts for each."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                pages[int(entry.name)] = int((entry / "statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    ours = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(pages.get(pid, 0) for pid in ours) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
