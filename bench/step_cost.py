"""What a step costs when somebody speaks for two minutes, ours beside the reference's, on one engine in one run.

One session dictates without end; others, each with speech of its own, are interleaved with it, so that caches are under
the pressure of many. Ours is the server's session machine and the engine's own streams. The reference is what the
streaming of the package qwen-asr does: one audio item that grows and is encoded anew in each step. The sessions beside
it always follow our policy. Counted is what vLLM was asked and what its encoder was given, so the counts do not depend
on the machine; the times do.

    python bench/step_cost.py                               the tiny checkpoint; about eight minutes
    python bench/step_cost.py --shape 0.6B                  random weights of the published shape; about six
    python bench/step_cost.py --seconds 20 --others 4       a short look
    python bench/step_cost.py --report                      table and plots in docs/ from the newest results

Needs the environment of `make test-vllm`. Speech does not come at real time: a step begins when the one before it has
ended.
"""

import argparse
import asyncio
import datetime
import gc
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _dictation import ReferenceSpeaker, Speaker, Stream, speech_of
from _full_shape import write_full_shape
from _policies import ReferenceStream, ScriptedCore
from _report import RESULTS, append, circumstances, read_rows
from _step_cost_report import write_report
from _step_cost_rows import Measured, print_pair, row_of
from _tiny_speech import CHECKPOINT, dictation
from _work import Meter

from qwen3_asr_server.domain import StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._vllm_request import Core, TokenIds
from qwen3_asr_server.engines._vllm_stream import Tools, VllmStream
from qwen3_asr_server.engines.vllm import VllmEngine
from qwen3_asr_server.vad import load_vad

SHAPES = ("tiny", "0.6B")
OTHERS_LOOP_S = 40
"""Speech of each session beside the measured one; said again and again."""
TOKENS_PER_S = 3.0
"""Text that random weights are taken to write."""
WARM_UP_S = 4.0
_WORDS = "one two three four five six seven eight nine red green blue open close start stop play pause light door"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    shape: str
    seconds: float
    reference_seconds: float
    others: int
    others_every_s: float
    cadences_s: Sequence[float]


class UntestedEngine(VllmEngine):
    """The engine without the check that it transcribes, which random weights would not pass."""

    async def _test_itself(self, core: Any) -> None:
        """Take it as it is."""


class Bench:
    """Runs on one engine."""

    def __init__(self, engine: VllmEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._tools = self._with_script(engine.tools)
        self._reference_tools = self._with_script(replace(engine.tools, core=rendered_core(engine)))
        self._meter = Meter(engine.core.vllm)
        model = load_vad("silero")
        self._audio = dictation(0, settings.seconds)
        (self._speech,) = speech_of(model, [self._audio])
        self._others_audio = [dictation(1 + number, OTHERS_LOOP_S) for number in range(settings.others)]
        self._others_speech = speech_of(model, self._others_audio) if self._others_audio else []

    async def warm_up(self) -> None:
        """Go every way once."""
        await self._run(2.0, WARM_UP_S, self._measured_speaker())
        await self._run(2.0, WARM_UP_S, self._reference_speaker())

    async def ours(self, cadence_s: float) -> Measured:
        """Measure our policy."""
        return await self._run(cadence_s, self._settings.seconds, self._measured_speaker())

    async def reference(self, cadence_s: float) -> Measured:
        """Measure the reference's."""
        seconds = self._settings.reference_seconds
        return await self._run(cadence_s, seconds, self._reference_speaker())

    async def _run(self, cadence_s: float, seconds: float, measured: Speaker | ReferenceSpeaker) -> Measured:
        others = deque(
            Speaker(1 + number, audio, speech, self._open_stream, self._meter)
            for number, (audio, speech) in enumerate(zip(self._others_audio, self._others_speech, strict=True))
        )
        every_s = self._settings.others_every_s
        await self._meter.begin()
        gc.collect()
        cpu_s, began, owed = time.process_time(), time.perf_counter(), 0.0
        for _ in range(round(seconds / cadence_s)):
            owed += len(others) * cadence_s / every_s
            turns = [others[place] for place in range(int(owed))]
            owed -= len(turns)
            others.rotate(-len(turns))
            await asyncio.gather(measured.advance(cadence_s), *[other.advance(every_s) for other in turns])
        cpu_s, rounds_s = time.process_time() - cpu_s, time.perf_counter() - began
        if isinstance(measured, Speaker):
            await measured.finish()
        for other in others:
            await other.close()
        encoded = await self._meter.end()
        return Measured(list(self._meter.steps), encoded, cpu_s, rounds_s)

    def _measured_speaker(self) -> Speaker:
        return Speaker(0, self._audio, self._speech, self._open_stream, self._meter)

    def _reference_speaker(self) -> ReferenceSpeaker:
        return ReferenceSpeaker(0, self._audio, ReferenceStream(self._reference_tools, self._encode), self._meter)

    def _open_stream(self) -> Stream:
        return VllmStream(self._tools, StreamOptions().language, "")

    def _encode(self, text: str) -> list[int]:
        return list(self._engine.core.tokenizer.encode(text, add_special_tokens=False))

    def _with_script(self, tools: Tools) -> Tools:
        """Let answers come from a script where the weights cannot write."""
        if self._settings.shape == "tiny":
            return tools
        rng = np.random.default_rng(0)
        text = " ".join(rng.choice(_WORDS.split(), 4 * round(TOKENS_PER_S * self._settings.seconds)))
        before = len(tools.prompt.opening(()))
        no_prefix = len(tools.prompt.prompt_ids((), (), None, ())) - before
        script: TokenIds = tuple(self._encode(text))
        header = tools.prompt.language_headers["en"]
        return replace(tools, core=ScriptedCore(tools.core, header, script, TOKENS_PER_S, no_prefix))


def rendered_core(engine: VllmEngine) -> Core:
    """Return another way to the same vLLM: it takes raw audio and computes all mel anew, as vLLM's users do."""
    from qwen3_asr_server.engines._vllm_adapter import VllmCore

    core = VllmCore(engine.core.vllm)
    core.direct = False
    return core


async def measure(settings: Settings, path: Path, note: str) -> None:
    """Run everything and write a row for each policy and cadence."""
    around = circumstances() | {"note": note}
    with ExitStack() as stack:
        folder = CHECKPOINT
        arguments: dict[str, object] = {"worker_extension_cls": "_work.EncoderLog"}
        if settings.shape != "tiny":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_full_shape(folder)
            arguments |= {"load_format": "dummy"}
        make: Callable[..., VllmEngine] = VllmEngine if settings.shape == "tiny" else UntestedEngine
        dtype = "float" if settings.shape == "tiny" else "auto"
        engine = make(EngineOptions(model_path=str(folder), dtype=dtype, decode_timeout_s=60), vllm_arguments=arguments)
        await engine.start()
        try:
            await _measure_on(engine, settings, around, path)
        finally:
            await engine.stop()


async def _measure_on(engine: VllmEngine, settings: Settings, around: dict[str, Any], path: Path) -> None:
    import torch

    import vllm

    around["versions"] |= {"vllm": vllm.__version__, "torch": torch.__version__}
    model = {
        "shape": settings.shape,
        "dtype": str(engine.core.vllm.model_config.dtype).removeprefix("torch."),
        "others": settings.others,
        "others_every_s": settings.others_every_s,
        "tokens_per_s": TOKENS_PER_S if settings.shape != "tiny" else None,
    }
    print(", ".join(f"{key} {value}" for key, value in (around | model).items() if value), flush=True)
    bench = Bench(engine, settings)
    await bench.warm_up()
    for cadence_s in settings.cadences_s:
        ours = row_of(await bench.ours(cadence_s), "ours", cadence_s, settings.seconds)
        append(path, around | model | ours)
        print(f"ours, every {cadence_s:g} s: {ours['rounds_s']} s for {ours['all_steps']} steps", flush=True)
        reference = row_of(await bench.reference(cadence_s), "reference", cadence_s, settings.reference_seconds)
        append(path, around | model | reference)
        print_pair(ours, reference)


def main() -> None:
    options = _parser().parse_args()
    if options.report:
        shapes = [shape for shape in SHAPES if any(RESULTS.glob(f"step_cost-{shape}-*.jsonl"))]
        write_report([read_rows(f"step_cost-{shape}-*.jsonl") for shape in shapes])
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1" if options.shape == "tiny" else "4")
    tiny = options.shape == "tiny"
    seconds = options.seconds or 120.0
    settings = Settings(
        options.shape,
        seconds,
        options.reference_seconds or (seconds if tiny else min(seconds, 48.0)),
        options.others if options.others is not None else (100 if tiny else 2),
        options.others_every,
        [float(part) for part in (options.cadence or ("2,0.4" if tiny else "2")).split(",")],
    )
    name = f"step_cost-{options.shape}-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.jsonl"
    asyncio.run(measure(settings, options.out or RESULTS / name, options.note))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--seconds", type=float, help="speech of the measured session (120)")
    parser.add_argument("--reference-seconds", type=float, help="the same for the reference (as --seconds; 0.6B: 48)")
    parser.add_argument("--others", type=int, help="sessions beside it (100; 0.6B: 2)")
    parser.add_argument("--others-every", type=float, default=4.0, help="seconds of audio between their steps")
    parser.add_argument("--cadence", help="seconds of audio between steps (2,0.4; 0.6B: 2)")
    parser.add_argument("--note", default="", help="written into the rows: what to know about this run")
    parser.add_argument("--report", action="store_true", help="write table and plots into docs/")
    parser.add_argument("--out", type=Path, help="file for the results (bench/results/step_cost-<shape>-<date>.jsonl)")
    return parser


if __name__ == "__main__":
    main()
