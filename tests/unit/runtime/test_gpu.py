"""What the GPUs have, by the lines of a tool that stands in for NVIDIA's."""

import asyncio
import sys
from pathlib import Path

import pytest

from qwen3_asr_server.runtime import gpu
from qwen3_asr_server.runtime.gpu import Gpu, GpuWatch

TWO = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 1024, 80535\n1, GPU-bbbb, NVIDIA A100, 40960, 0, 40960\n"
FIRST, SECOND = Gpu(0, "NVIDIA H100 80GB HBM3", 81559, 1024, 80535), Gpu(1, "NVIDIA A100", 40960, 0, 40960)


def tool(output: str, status: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys; sys.stdout.write({output!r}); sys.exit({status})")


@pytest.mark.parametrize(
    ("output", "visible", "expected"),
    [
        (TWO, None, (FIRST, SECOND)),
        (TWO, "1", (SECOND,)),
        (TWO, "0, 1", (FIRST, SECOND)),
        (TWO, "GPU-bb", (SECOND,)),
        (TWO, "", ()),
        (TWO, "-1", ()),
        ("0, GPU-aaaa, NVIDIA GB10, [N/A], [N/A], [N/A]\n" + TWO.splitlines()[1], None, (SECOND,)),
        ("No devices were found\n", None, ()),
        ("", None, ()),
    ],
)
async def test_what_the_tool_says(output: str, visible: str | None, expected: tuple[Gpu, ...]) -> None:
    assert await GpuWatch(tool(output), visible).gpus() == expected


async def test_a_tool_that_fails_or_is_not_there() -> None:
    assert await GpuWatch(tool(TWO, 9)).gpus() == ()
    assert await GpuWatch(("no-such-tool",)).gpus() == ()


async def test_a_tool_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DEADLINE_S", 0.05)
    assert await GpuWatch((sys.executable, "-c", "import time; time.sleep(60)")).gpus() == ()


async def test_it_is_asked_once_in_a_while_however_many_want_to_know(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    program = f"open({str(calls)!r}, 'a').write('x'); print({TWO!r})"
    now = 0.0
    watch = GpuWatch((sys.executable, "-c", program), clock=lambda: now)
    assert set(await asyncio.gather(*(watch.gpus() for _ in range(5)))) == {(FIRST, SECOND)}
    assert calls.read_text() == "x"
    now = gpu.FRESH_S
    await watch.gpus()
    assert calls.read_text() == "xx"
