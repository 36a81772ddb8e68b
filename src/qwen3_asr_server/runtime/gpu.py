"""How much memory the GPUs of this machine have and use, as NVIDIA's own tool tells it.

The tool knows what other processes use too, and asking it does not take a context of CUDA in this one. It is asked
when somebody wants to know, at most once in `FRESH_S`. Called by the doors that report the server's state.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

COMMAND: Final = (
    "nvidia-smi",
    "--query-gpu=index,uuid,name,memory.total,memory.used,memory.free",
    "--format=csv,noheader,nounits",
)
FRESH_S: Final = 2.0
"""How long an answer counts."""
_DEADLINE_S: Final = 5.0
_ABSENT_FOR_S: Final = 60.0
"""How long it counts that there is no GPU, or no tool."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its memory, in MiB, whoever uses it."""

    index: int
    name: str
    total_mib: int
    used_mib: int
    free_mib: int


class GpuWatch:
    """Says what the GPUs have.

    Args:
        command: prints a line a GPU, see `COMMAND`.
        visible: which GPUs count, as CUDA takes it: indices or UUIDs, comma-separated; None counts all.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        command: tuple[str, ...] = COMMAND,
        visible: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._visible = visible
        self._clock = clock
        self._asking = asyncio.Lock()
        self._known: tuple[Gpu, ...] = ()
        self._fresh_until = 0.0

    @classmethod
    def of_this_process(cls) -> "GpuWatch":
        """Watch the GPUs that CUDA would give this process."""
        return cls(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))

    async def gpus(self) -> tuple[Gpu, ...]:
        """Return what each GPU has; nothing where there is none, or nobody knows."""
        async with self._asking:
            if self._clock() >= self._fresh_until:
                self._known = await self._asked()
                self._fresh_until = self._clock() + (FRESH_S if self._known else _ABSENT_FOR_S)
            return self._known

    async def _asked(self) -> tuple[Gpu, ...]:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return ()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                output, _ = await process.communicate()
        except TimeoutError:
            _log.warning("nvidia-smi did not answer in time")
            return ()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return tuple(_parsed(output.decode(errors="replace"), self._visible)) if process.returncode == 0 else ()


def _parsed(output: str, visible: str | None) -> Iterator[Gpu]:
    wanted = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    for line in output.splitlines():
        with suppress(ValueError):  # a GPU may not say how much it has
            index, uuid, name, *figures = (cell.strip() for cell in line.split(","))
            if wanted is None or any(index == each or uuid.startswith(each) for each in wanted):
                total, used, free = map(int, figures)
                yield Gpu(int(index), name, total, used, free)
