"""The folder of the jobs: one server's at a time, and touched by one thread of it.

    <DATA_DIR>/jobs/lock           held by the server that works the jobs off
                    jobs.sqlite    jobs and files, see `_jobs_store`
                    results/       what was heard, see `job_results`

Knows when the folder can be used and why not, and nothing of what jobs are for. Owned by `jobs`.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from qwen3_asr_server.errors import Overloaded
from qwen3_asr_server.runtime._jobs_store import JobsStore
from qwen3_asr_server.runtime._storing import private_folder
from qwen3_asr_server.runtime.job_results import ResultFolder

RETRY_S: Final = 1.0
"""Between two attempts to get hold of the folder."""
START_S: Final = 10.0
"""How long those who ask wait for the first attempt: the port answers before it is made."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class JobsDisk:
    """Jobs and results in a folder.

    Args:
        folder: made if it is not there.
        clock: seconds since 1970.

    Attributes:
        results: there once `open` has returned.
        problem: why the folder cannot be used now; None when it can.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._tried = asyncio.Event()
        self._lock = -1
        self._store: JobsStore | None = None
        self.results = ResultFolder(folder / "results")
        self.problem: str | None = "The server is starting."

    @property
    def waiting(self) -> int:
        """Files that wait for their turn."""
        return self._store.waiting if self._store is not None else 0

    @property
    def suspects(self) -> int:
        """Files with which the last server may have died, until they are over."""
        return self._store.suspects if self._store is not None else 0

    async def open(self) -> None:
        """Wait until the folder is ours, and give back what the last server that had it was working on."""
        try:
            while not await self._run(self._opened):
                self._tried.set()
                await asyncio.sleep(RETRY_S)
        finally:
            self._tried.set()

    async def close(self) -> None:
        """Leave the folder to the next server."""
        await self._run(self._closed)
        self._thread.shutdown(wait=False)

    async def ask(self, question: Callable[[JobsStore], T]) -> T:
        """Have something done on the thread; once begun it is done to its end.

        Raises:
            Overloaded: the folder cannot be used, or the disk is full.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self._tried.wait()
        store = self._store
        if store is None:
            raise Overloaded(self.problem or "")
        try:
            return await self._run(lambda: question(store))
        except (OSError, sqlite3.Error):
            _log.exception("the jobs cannot be read or written")
            raise Overloaded("The server cannot store jobs now.") from None

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _opened(self) -> bool:
        try:
            self._lock = os.open(private_folder(self._folder) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            store = JobsStore(self._folder / "jobs.sqlite")
            store.recover(self._clock())
            self.results.keep_only(store.results())
        except BlockingIOError:
            self._cannot("Another server works on the jobs in DATA_DIR: stop it, or give each a folder of its own.")
        except (OSError, sqlite3.Error) as error:
            self._cannot("The jobs in DATA_DIR cannot be read or written; the server's log has the details.", error)
        else:
            self._store, self.problem = store, None
        return self._store is not None

    def _cannot(self, problem: str, error: Exception | None = None) -> None:
        self._unlock()
        if problem != self.problem:
            self.problem = problem
            _log.warning("%s", problem, exc_info=error)

    def _closed(self) -> None:
        store, self._store = self._store, None
        self.problem = "The server is shutting down."
        if store is not None:
            store.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
