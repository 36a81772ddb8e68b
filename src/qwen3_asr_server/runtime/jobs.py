"""Recordings to be transcribed without a client waiting: a queue on disk, worked off a few files at a time.

    submit ──▶ PENDING ──▶ RUNNING ──▶ result on disk, kept so long, then swept together with the job
                  ▲           │
                  └───────────┘ the server ends, or is full, or the engine died

A file that is being worked on has a task; whatever happens to the server, the file is begun again by the next one. One
server works off a folder: another one waits for its lock, and takes over when it is gone.

Knows no wire format and no recognition: a `Work` does that (`job_work`). The application runs one `Jobs` as long as it
lives; the doors for jobs ask it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.errors import AsrServerError, Overloaded
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime._job_failures import failure_of
from qwen3_asr_server.runtime._jobs_disk import JobsDisk
from qwen3_asr_server.runtime._jobs_store import MAX_ATTEMPTS, JobsStore, StoreFull
from qwen3_asr_server.runtime.changes import Changes
from qwen3_asr_server.runtime.job_results import JobResult
from qwen3_asr_server.runtime.job_values import Claim, Failure, Job, JobsQuery, JobState, JobStatus, NewJob
from qwen3_asr_server.runtime.offline import Progress

RETRY_AFTER_S: Final = 5.0
"""Pause before work that failed for no fault of the file is begun again, times the attempts so far."""
SWEEP_INTERVAL_S: Final = 60.0
_FULL_AGAIN_S: Final = 30.0

_log = logging.getLogger(__name__)


class JobsFull(Overloaded):
    """As many files wait, or jobs are kept, as may."""


class Work(Protocol):
    """What transcribes a file, see `job_work.JobWork`."""

    async def __call__(self, claim: Claim, progress: Progress) -> JobResult:
        """Return what was heard.

        Raises:
            AsrServerError: there is no transcript; if it is retryable, there may be one later.
        """
        ...


@dataclass(frozen=True, slots=True)
class JobsOptions:
    """Where jobs are kept, and their bounds."""

    folder: Path
    """Made if it is not there."""
    keep_s: float = 86400
    """How long a job can be asked for after its end, in seconds."""
    max_files: int = 1000
    """Most files that are PENDING or RUNNING."""
    at_once: int = 8
    """Files that are worked on at once."""
    max_files_of_owner: int | None = None
    """How many of `max_files` may belong to one client's key; None where nobody shares the queue."""


@dataclass(slots=True, eq=False)
class _Running:
    """A file that is being worked on."""

    task: asyncio.Task[None] | None = None
    done_s: float = 0.0
    total_s: float | None = None

    def note(self, done_s: float, total_s: float | None) -> None:
        self.done_s, self.total_s = done_s, total_s


class Jobs:
    """Keep and work off jobs.

    Args:
        options: where, and how many.
        work: transcribes a file.
        metrics: where they are counted.
        clock: seconds since 1970.
    """

    def __init__(
        self, options: JobsOptions, work: Work, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._work = work
        self._metrics = metrics
        self._clock = clock
        self._disk = JobsDisk(options.folder, clock)
        self._running: dict[tuple[str, int], _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = Changes()
        metrics.job_files_waiting.set_function(lambda: self.waiting)
        metrics.job_files_running.set_function(lambda: len(self._running))

    @property
    def problem(self) -> str | None:
        """Why jobs can be neither taken in nor told now; None when they can."""
        return self._disk.problem

    @property
    def waiting(self) -> int:
        """Files that wait for their turn."""
        return self._disk.waiting

    @property
    def running(self) -> int:
        """Files that are worked on."""
        return len(self._running)

    async def run(self) -> None:
        """Work until cancelled; then everything that was begun is given back."""
        try:
            await self._disk.open()
            async with asyncio.TaskGroup() as group:
                self._tasks = {group.create_task(self._work_off(group)), group.create_task(self._sweep())}
                await asyncio.get_running_loop().create_future()
        finally:
            await self.suspend()
            await self._disk.close()

    async def suspend(self) -> None:
        """Stop working, and give back what was begun; jobs can still be asked for. Safe to call twice."""
        tasks, self._tasks = self._tasks, set()
        # The thread may begin another one meanwhile.
        tasks |= {running.task for running in list(self._running.values()) if running.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with suppress(Overloaded):
            await self._disk.ask(lambda store: store.give_back(self._clock()))
        self._running.clear()

    # What the doors call

    async def submit(self, new: NewJob) -> None:
        """Take in a job.

        Raises:
            JobsFull: too many files wait already, or too many jobs are kept.
            Overloaded: jobs cannot be stored now.
        """
        most, of_owner = self._options.max_files, self._options.max_files_of_owner
        try:
            await self._disk.ask(lambda store: store.add(new, self._clock(), most, of_owner))
        except StoreFull as full:
            raise JobsFull(str(full), retry_after_s=_FULL_AGAIN_S) from None
        _log.info("job taken in", extra={"job_id": new.id, "files": len(new.urls)})
        self._changes.tell()

    async def find(self, id_: str, owner: str | None) -> JobStatus | None:
        """Return a job and how far it has come, if this owner may see it; an owner of None sees all.

        Raises:
            Overloaded: jobs cannot be told now.
        """
        job = await self._disk.ask(lambda store: store.find(id_, owner))
        return None if job is None else self._status(job)

    async def listed(self, query: JobsQuery) -> tuple[int, list[Job]]:
        """Return how many jobs there are of a kind, and one page of them, the latest first.

        Raises:
            Overloaded: jobs cannot be told now.
        """
        return await self._disk.ask(lambda store: store.listed(query))

    async def cancel(self, id_: str, owner: str | None) -> bool:
        """Cancel a job, whether it is worked on or not; tell whether there was one that was not over.

        Raises:
            Overloaded: jobs cannot be changed now.
        """
        files = await self._disk.ask(lambda store: store.cancel(id_, owner, self._clock()))
        if not files:
            return False
        for (job, _), running in list(self._running.items()):
            if job == id_ and running.task is not None:
                running.task.cancel()
        self._metrics.job_files.labels("canceled").inc(files)
        return True

    async def result(self, name: str) -> JobResult | None:
        """Return what was heard in a file; None if there is no result of this name, or not any more.

        Raises:
            Overloaded: results cannot be read now.
        """
        if not await self._disk.ask(lambda store: store.holds(name, self._clock() - self._options.keep_s)):
            return None
        try:
            return await asyncio.to_thread(self._disk.results.read, name)
        except FileNotFoundError:
            return None

    # Work

    async def _work_off(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._changes.until(lambda: self.waiting > 0 and len(self._running) < self._at_once)
            try:
                claim = await self._disk.ask(self._claim)
            except Overloaded:
                await asyncio.sleep(RETRY_AFTER_S)
                continue
            if claim is not None:
                running = self._running[claim.job, claim.place]
                running.task = group.create_task(self._do(claim, running))

    @property
    def _at_once(self) -> int:
        """How many files may be worked on: one alone while it may be the one that kills the server."""
        return 1 if self._disk.suspects else self._options.at_once

    def _claim(self, store: JobsStore) -> Claim | None:
        claim = store.claim(self._clock())
        if claim is not None:
            # Here and not on the loop: the next thing on this thread may be a sweep.
            self._running[claim.job, claim.place] = _Running()
        return claim

    async def _do(self, claim: Claim, running: _Running) -> None:
        """Work on a file to its end; cancelled, leave it to whoever cancelled."""
        try:
            error = await self._try(claim, running)
            if error is not None and error.retryable and claim.attempt < MAX_ATTEMPTS:
                await asyncio.sleep(RETRY_AFTER_S * claim.attempt)
                await self._disk.ask(lambda store: store.put_back(claim, self._clock()))
            elif error is not None:
                await self._fail(claim, failure_of(error), error.message)
        except AsrServerError as problem:
            _log.warning("a job cannot be noted; it is begun again: %s", problem.message)
        except Exception:  # noqa: BLE001 - the boundary of a task
            _log.exception("a job failed", extra={"job_id": claim.job})
            with suppress(AsrServerError):
                await self._fail(claim, Failure.INTERNAL, "The server failed; its log has the details.")
        finally:
            self._running.pop((claim.job, claim.place), None)
            self._changes.tell()

    async def _try(self, claim: Claim, running: _Running) -> AsrServerError | None:
        """Return why a file was not transcribed, or None when its result is kept."""
        try:
            result = await self._work(claim, running.note)
            wanted = await self._disk.ask(lambda store: self._keep(store, claim, result))
        except AsrServerError as error:
            return error
        if wanted:
            self._count(claim, "succeeded")
        return None

    def _keep(self, store: JobsStore, claim: Claim, result: JobResult) -> bool:
        """Store a result; tell whether anybody still wants it. On the thread for the disk, so never half done."""
        name = self._disk.results.write(result)
        wanted = False
        try:
            wanted = store.succeed(claim, self._clock(), result.transcript.duration / SAMPLE_RATE, name)
        finally:
            if not wanted:
                self._disk.results.remove([name])
        return wanted

    async def _fail(self, claim: Claim, failure: Failure, message: str) -> None:
        if await self._disk.ask(lambda store: store.fail(claim, self._clock(), failure, message)):
            self._count(claim, "failed", failure)

    def _count(self, claim: Claim, result: str, failure: Failure | None = None) -> None:
        self._metrics.job_files.labels(result).inc()
        _log.info("job file %s", result, extra={"job_id": claim.job, "place": claim.place, "failure": failure})

    def _status(self, job: Job) -> JobStatus:
        """Return how far a job has come."""
        done_s, total_s = 0.0, 0.0
        known = True
        for place, file in enumerate(job.files):
            running = self._running.get((job.id, place))
            if file.state is JobState.SUCCEEDED:
                done_s += file.duration_s
                total_s += file.duration_s
            elif running is not None and running.total_s is not None:
                done_s += running.done_s
                total_s += running.total_s
            elif not file.state.over:
                known = False
        return JobStatus(job, done_s, total_s if known else None)

    # What is kept

    async def _sweep(self) -> None:
        while True:
            with suppress(Overloaded):
                await self._disk.ask(self._forget)
            # There may be work that nobody told of: given back just now, or taken in from a client that did not stay.
            self._changes.tell()
            await asyncio.sleep(min(SWEEP_INTERVAL_S, self._options.keep_s))

    def _forget(self, store: JobsStore) -> None:
        """Delete what is too old, and have begun again what nobody works on although it says so."""
        now = self._clock()
        self._disk.results.remove(store.forget(now - self._options.keep_s))
        store.give_back(now, but=set(self._running))
