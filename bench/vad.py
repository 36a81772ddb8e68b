"""What a frame costs the voice activity detector, in batches of several sizes and through the batcher.

One process on one core scores real speech. Model: the time of a call, divided by its rows. Batcher: N streams get a
100 ms packet each every 100 ms, at random phases; counted is the time from a packet to its probabilities, and the CPU
time of the whole process (event loop included) and of the batcher's thread, for each frame.

    python bench/vad.py                                       all of it, printed
    python bench/vad.py --out bench/results/vad-DATE.jsonl    and written down
    python bench/vad.py --streams 200 --gather-ms 0,5,10      which gather window is best
"""

import argparse
import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import append, circumstances, percentile
from _speech import PACKET_MS, PACKET_SAMPLES, SpeechLoop

from qwen3_asr_server.domain import FRAME_SAMPLES
from qwen3_asr_server.vad import load_vad
from qwen3_asr_server.vad._base import Floats, VadModel
from qwen3_asr_server.vad._batcher import VadBatcher, VadStream

BATCHES = (1, 4, 16, 32, 64, 256)
FRAMES_A_BATCH = 12_800
"""Frames scored for each batch size."""
DEFAULT_GATHER_MS = 5.0


def measure_model(model: VadModel, speech: Floats, rows: int) -> dict[str, Any]:
    """Time calls of `rows` streams, each at another place of the speech."""
    states = np.stack([model.new_state()] * rows)
    places = np.linspace(0, len(speech), rows, endpoint=False, dtype=int)
    costs_us = []
    for call in range(10 + FRAMES_A_BATCH // rows):
        frames = speech[(places + call) % len(speech)]
        started = time.perf_counter()
        _, states = model.score(frames, states)
        costs_us.append((time.perf_counter() - started) / rows * 1e6)
    return {"what": "model", "rows": rows, "us_per_frame": spread(costs_us[10:])}


async def measure_batcher(
    model: VadModel, speech: Floats, streams: int, gather_ms: float, seconds: float
) -> dict[str, Any]:
    """Run paced streams and see how long their packets wait and what they cost."""
    calls: list[tuple[int, float]] = []
    batcher = VadBatcher(model, gather_s=gather_ms / 1000, on_batch=lambda *call: calls.append(call))
    batcher.start()
    lags: list[float] = []
    phases = random.Random(0)
    begin = time.perf_counter() + 0.2
    cpu_before = time.process_time()
    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            first = begin + phases.random() * PACKET_MS / 1000
            place = number * len(speech) // streams
            group.create_task(paced(batcher.open(), speech, place, first, begin + seconds, lags))
    cpu_s = time.process_time() - cpu_before
    batcher.stop()
    frames = sum(rows for rows, _ in calls)
    return {
        "what": "batcher",
        "streams": streams,
        "gather_ms": gather_ms,
        "seconds": seconds,
        "lag_ms": spread([lag * 1000 for lag in lags]),
        "rows_mean": round(frames / len(calls), 1),
        "model_us_per_frame": round(sum(spent for _, spent in calls) / frames * 1e6, 1),
        "process_cpu_us_per_frame": round(cpu_s / frames * 1e6, 1),
        "process_cpu_share": round(cpu_s / seconds, 3),
    }


async def paced(stream: VadStream, speech: Floats, place: int, first: float, end: float, lags: list[float]) -> None:
    """Send a packet every 100 ms until `end`, from frame `place` on, and note when its last frame is scored."""
    packet = done = 0
    while (due := first + packet * PACKET_MS / 1000) < end:
        await asyncio.sleep(max(0, due - time.perf_counter()))
        packet += 1
        ready = packet * PACKET_SAMPLES // FRAME_SAMPLES
        await stream.score(speech[np.arange(place + done, place + ready) % len(speech)])
        done = ready
        lags.append(time.perf_counter() - due)
    stream.close()


def spread(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    return {f"p{share}": round(percentile(values, share / 100), 2) for share in (50, 95, 99)}


def speech_frames() -> Floats:
    """Return all prompts as float32 [n, 512]."""
    samples = np.concatenate(SpeechLoop().packets).astype(np.float32) / 32768
    return samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of JSON lines to add the results to")
    parser.add_argument("--vad", default="silero")
    parser.add_argument("--streams", default="1,32,200", help="paced streams, comma-separated")
    parser.add_argument("--gather-ms", default=str(DEFAULT_GATHER_MS), help="gather windows, comma-separated")
    parser.add_argument("--seconds", type=float, default=10, help="length of each run with paced streams")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write down if asked."""
    options = arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    common = circumstances() | {"vad": options.vad}
    print(", ".join(f"{key} {value}" for key, value in common.items()))
    model, speech = load_vad(options.vad), speech_frames()
    rows = [measure_model(model, speech, batch) for batch in BATCHES]
    for gather_ms in map(float, options.gather_ms.split(",")):
        for streams in map(int, options.streams.split(",")):
            rows.append(asyncio.run(measure_batcher(model, speech, streams, gather_ms, options.seconds)))
    for row in rows:
        print(row)
        if options.out:
            append(options.out, common | row)


if __name__ == "__main__":
    main()
