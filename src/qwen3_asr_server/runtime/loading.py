"""The start of the engine: at once, or when the first client comes and again for each one after a failure.

Tells the step scheduler how it went, so that the steps which wait can run or fail. Knows no settings and no
sessions; called by the services.
"""

import asyncio
import logging

from qwen3_asr_server.engines._base import Engine
from qwen3_asr_server.errors import EngineError, EngineNotReady
from qwen3_asr_server.runtime.scheduler import StepScheduler

_log = logging.getLogger(__name__)


class EngineLoader:
    """Start an engine for a scheduler.

    Attributes:
        failed: the last attempt that ended has failed.
    """

    def __init__(self, engine: Engine, scheduler: StepScheduler) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._task: asyncio.Task[None] | None = None
        self.failed = False

    @property
    def loading(self) -> bool:
        """Whether an attempt of `want` runs."""
        return self._task is not None and not self._task.done()

    async def load(self) -> None:
        """Start the engine.

        Raises:
            EngineError: with a reason a user can act upon.
        """
        try:
            await self._engine.start()
        except EngineError as error:
            self.failed = True
            self._scheduler.engine_failed(error)
            raise
        self.failed = False
        self._scheduler.engine_ready()

    def want(self) -> None:
        """Begin to load, once for all who want it; again when that failed."""
        if not self._scheduler.is_open and not self.loading:
            self._task = asyncio.create_task(self._load_quietly(), name="load the engine")

    async def stop(self) -> None:
        """Give up an attempt that runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _load_quietly(self) -> None:
        try:
            await self.load()
        except EngineError as error:
            _log.error("the engine could not be loaded: %s", error.message)
        except Exception:  # noqa: BLE001 - a task of its own: nobody else would hear of it
            _log.exception("the engine could not be loaded")
            self.failed = True
            self._scheduler.engine_failed(EngineNotReady("The engine could not be loaded."))
