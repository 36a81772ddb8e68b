"""Jobs from submitting to forgetting, with work that does as it is told, on a clock that jumps."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3_asr_server.errors import (
    AsrServerError,
    EngineError,
    InternalError,
    InvalidValue,
    MediaError,
    Overloaded,
    SourceRefused,
    SourceUnreachable,
    TooLarge,
    TooLong,
)
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime._job_failures import NobodySpeaks, NoWords
from qwen3_asr_server.runtime._jobs_store import MAX_ATTEMPTS, JobsStore
from qwen3_asr_server.runtime._media_wire import MediaKind
from qwen3_asr_server.runtime.job_results import JobResult
from qwen3_asr_server.runtime.job_values import Claim, Failure, JobState, JobStatus, JobWish, NewJob
from qwen3_asr_server.runtime.jobs import Jobs, JobsFull, JobsOptions
from qwen3_asr_server.runtime.offline import Progress
from qwen3_asr_server.text.transcript import Segment, Transcript
from support.clock import clock, settle, virtual_time

WISH = JobWish("model")
KEEP_S = 3600.0
LOOK_S = 0.05
MOST_LOOKS = 2000


class Worker:
    """Transcribes at once, or waits, or fails."""

    def __init__(self, *errors: AsrServerError | Exception) -> None:
        self.errors = list(errors)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.at_work = 0
        self.most_at_work = 0

    async def __call__(self, claim: Claim, progress: Progress) -> JobResult:
        self.begun.append(claim.url)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            progress(1.0, 4.0)
            await self.gate.wait()
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.at_work -= 1
        transcript = Transcript((Segment("hello", 0, 16_000, language="en"),), 64_000)
        return JobResult(claim.form, claim.url, claim.wish, MediaKind("wav", "pcm_s16le", 8000, 1), (0,), transcript)


def new(id_: str, files: int = 1, owner: str | None = None) -> NewJob:
    return NewJob(id_, owner, "form", "fun-asr", WISH, tuple(f"{id_}/{n}" for n in range(files)))


@asynccontextmanager
async def running(
    folder: Path, worker: Worker, *, most: int = 100, at_once: int = 2, keep_s: float = KEEP_S
) -> AsyncIterator[Jobs]:
    """Run jobs while the block lasts; leaving it ends them as SIGTERM does."""
    jobs = Jobs(JobsOptions(folder, keep_s, most, at_once), worker, Metrics(), asyncio.get_running_loop().time)
    task = asyncio.create_task(jobs.run())
    try:
        await holds(lambda: jobs.problem != "The server is starting.")
        yield jobs
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def status(jobs: Jobs, id_: str) -> JobStatus:
    found = await jobs.find(id_, None)
    assert found is not None
    return found


async def state_of(jobs: Jobs, id_: str) -> JobState:
    return (await status(jobs, id_)).job.state


async def until(jobs: Jobs, id_: str, *states: JobState) -> JobStatus:
    """Return a job as soon as it is in one of these states."""
    for _ in range(MOST_LOOKS):
        if (found := await status(jobs, id_)).job.state in states:
            return found
        await asyncio.sleep(LOOK_S)
    raise AssertionError(f"{id_} is {found.job.state}")


async def holds(condition: Callable[[], bool]) -> None:
    """Return as soon as a condition holds."""
    for _ in range(MOST_LOOKS):
        if condition():
            return
        await asyncio.sleep(LOOK_S)
    raise AssertionError("waited in vain")


OVER = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)


def results(folder: Path) -> list[Path]:
    return list((folder / "results").iterdir())


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@virtual_time
async def test_a_job_from_begin_to_end(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker) as jobs:
        await jobs.submit(new("a", files=2))
        found = await until(jobs, "a", JobState.RUNNING)
        await holds(lambda: worker.at_work == 2)
        found = await status(jobs, "a")
        assert (found.done_s, found.total_s, jobs.running, jobs.waiting) == (2.0, 8.0, 2, 0)
        worker.gate.set()
        found = await until(jobs, "a", *OVER)
        assert (found.job.state, found.done_s, found.total_s) == (JobState.SUCCEEDED, 8.0, 8.0)
        for file in found.job.files:
            assert file.result is not None
            result = await jobs.result(file.result)
            assert result is not None
            assert (result.url, result.wish, result.transcript.text) == (file.url, WISH, "hello")
            assert result.transcript.segments[0].language == "en"
    assert jobs.problem is not None


@virtual_time
async def test_nobody_knows_how_long_a_job_is_while_a_file_waits(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker, at_once=1) as jobs:
        await jobs.submit(new("a", files=2))
        await holds(lambda: worker.at_work == 1)
        found = await status(jobs, "a")
        assert (found.done_s, found.total_s) == (1.0, None)


@virtual_time
async def test_first_come_first_served_and_so_many_at_once(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker) as jobs:
        for name in "abcd":
            await jobs.submit(new(name))
        await until(jobs, "b", JobState.RUNNING)
        assert [(await status(jobs, name)).job.ahead for name in "cd"] == [0, 1]
        worker.gate.set()
        await until(jobs, "d", *OVER)
    assert worker.begun == ["a/0", "b/0", "c/0", "d/0"]
    assert worker.most_at_work == 2


@virtual_time
async def test_no_more_than_may_wait(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker, most=3) as jobs:
        await jobs.submit(new("a", files=3))
        with pytest.raises(JobsFull, match="At most 3"):
            await jobs.submit(new("b"))
        worker.gate.set()
        await until(jobs, "a", *OVER)
        await jobs.submit(new("b"))
        assert await jobs.find("b", None)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (SourceUnreachable("no", status=404), Failure.MISSING),
        (SourceUnreachable("no", status=403), Failure.FORBIDDEN),
        (SourceUnreachable("no", status=500), Failure.UNREACHABLE),
        (SourceUnreachable("no"), Failure.UNREACHABLE),
        (SourceRefused("no"), Failure.REFUSED),
        (TooLarge("no"), Failure.TOO_LARGE),
        (TooLong("no"), Failure.TOO_LONG),
        (MediaError("no"), Failure.UNREADABLE),
        (NobodySpeaks("no"), Failure.SILENT),
        (NoWords("no"), Failure.WORDLESS),
        (InvalidValue("no"), Failure.UNSUITABLE),
        (InternalError("no"), Failure.INTERNAL),
    ],
)
def test_failures(tmp_path: Path, error: AsrServerError, failure: Failure) -> None:
    @virtual_time
    async def fail() -> None:
        worker = Worker(error)
        async with running(tmp_path, worker) as jobs:
            await jobs.submit(new("a"))
            (file,) = (await until(jobs, "a", JobState.FAILED)).job.files
        assert (file.failure, file.message) == (failure, "no")
        assert len(worker.begun) == 1

    fail()


@virtual_time
async def test_a_fault_of_ours_is_told_without_its_details(tmp_path: Path) -> None:
    async with running(tmp_path, Worker(KeyError("/secret/path"))) as jobs:
        await jobs.submit(new("a"))
        (file,) = (await until(jobs, "a", JobState.FAILED)).job.files
        assert file.failure is Failure.INTERNAL
        assert "secret" not in (file.message or "")
        await jobs.submit(new("b"))
        assert (await until(jobs, "b", *OVER)).job.state is JobState.SUCCEEDED


@pytest.mark.parametrize(("errors", "state"), [(MAX_ATTEMPTS - 1, JobState.SUCCEEDED), (MAX_ATTEMPTS, JobState.FAILED)])
def test_what_may_pass_is_tried_again(tmp_path: Path, errors: int, state: JobState) -> None:
    @virtual_time
    async def try_again() -> None:
        worker = Worker(*[EngineError("It died.")] * errors)
        async with running(tmp_path, worker) as jobs:
            began = clock()
            await jobs.submit(new("a"))
            found = await until(jobs, "a", *OVER)
        assert (found.job.state, len(worker.begun)) == (state, MAX_ATTEMPTS)
        assert found.job.files[0].failure == (Failure.ENGINE if state is JobState.FAILED else None)
        assert clock() - began >= 5 * (1 + 2)

    try_again()


# Cancelling


@virtual_time
async def test_cancelling_while_it_waits(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker, at_once=1) as jobs:
        await jobs.submit(new("a"))
        await jobs.submit(new("b"))
        await until(jobs, "a", JobState.RUNNING)
        assert await jobs.cancel("b", None)
        assert await state_of(jobs, "b") is JobState.CANCELED
        assert not await jobs.cancel("b", None)
        worker.gate.set()
        await until(jobs, "a", *OVER)
    assert worker.begun == ["a/0"]


@virtual_time
async def test_cancelling_while_it_is_worked_on(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker, at_once=1) as jobs:
        await jobs.submit(new("a", files=2))
        await jobs.submit(new("b"))
        await until(jobs, "a", JobState.RUNNING)
        assert await jobs.cancel("a", None)
        await until(jobs, "b", JobState.RUNNING)
        assert (await state_of(jobs, "a"), worker.at_work) == (JobState.CANCELED, 1)
        worker.gate.set()
        await until(jobs, "b", *OVER)
        assert len(results(tmp_path)) == 1
    assert worker.begun == ["a/0", "b/0"]


@virtual_time
async def test_what_was_heard_when_it_was_cancelled_is_not_kept(tmp_path: Path) -> None:
    class Done(Worker):
        """Has its result at the moment when it is cancelled."""

        async def __call__(self, claim: Claim, progress: Progress) -> JobResult:
            with suppress(asyncio.CancelledError):
                return await super().__call__(claim, progress)
            self.gate.set()
            return await super().__call__(claim, progress)

    worker = Done()
    worker.gate.clear()
    async with running(tmp_path, worker) as jobs:
        await jobs.submit(new("a"))
        await holds(lambda: worker.at_work == 1)
        assert await jobs.cancel("a", None)
        await holds(lambda: jobs.running == 0)
        assert await state_of(jobs, "a") is JobState.CANCELED
        assert results(tmp_path) == []


@virtual_time
async def test_cancelling_during_a_pause_before_another_attempt(tmp_path: Path) -> None:
    worker = Worker(EngineError("It died."))
    async with running(tmp_path, worker) as jobs:
        await jobs.submit(new("a"))
        await holds(lambda: bool(worker.begun))
        await asyncio.sleep(1)
        assert await jobs.cancel("a", None)
        await asyncio.sleep(60)
        assert (await state_of(jobs, "a"), jobs.running) == (JobState.CANCELED, 0)
    assert len(worker.begun) == 1


@virtual_time
async def test_what_is_over_is_not_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, Worker()) as jobs:
        await jobs.submit(new("a", owner="me"))
        await until(jobs, "a", *OVER)
        assert not await jobs.cancel("a", "me")
        assert not await jobs.cancel("nothing", "me")
        assert await state_of(jobs, "a") is JobState.SUCCEEDED


@virtual_time
async def test_others_see_nothing(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker) as jobs:
        await jobs.submit(new("a", owner="me"))
        assert await jobs.find("a", "you") is None
        assert not await jobs.cancel("a", "you")
        assert await jobs.find("a", "me")


@virtual_time
async def test_a_job_whose_client_leaves_while_it_is_taken_in_is_done(tmp_path: Path) -> None:
    begun, left = threading.Event(), threading.Event()

    class SlowWish(JobWish):
        def to_json(self) -> str:
            begun.set()
            left.wait()
            return super().to_json()

    async with running(tmp_path, Worker()) as jobs:
        leaving = asyncio.create_task(jobs.submit(replace(new("a"), wish=SlowWish("model"))))
        assert await asyncio.to_thread(begun.wait, 5)
        leaving.cancel()
        await asyncio.wait({leaving})
        left.set()
        assert (await until(jobs, "a", *OVER)).job.state is JobState.SUCCEEDED


# Ends and beginnings of the server


@virtual_time
async def test_who_comes_before_the_folder_is_open_waits(tmp_path: Path) -> None:
    jobs = Jobs(JobsOptions(tmp_path), Worker(), Metrics(), asyncio.get_running_loop().time)
    early = asyncio.create_task(jobs.submit(new("a")))
    await settle()
    task = asyncio.create_task(jobs.run())
    await early
    assert (await until(jobs, "a", *OVER)).job.state is JobState.SUCCEEDED
    task.cancel()
    await asyncio.wait({task})


@virtual_time
async def test_a_planned_end_gives_everything_back_and_the_next_server_does_it(tmp_path: Path) -> None:
    worker = Worker()
    worker.gate.clear()
    async with running(tmp_path, worker) as jobs:
        await jobs.submit(new("a"))
        await until(jobs, "a", JobState.RUNNING)
        began = clock()
        await jobs.suspend()
        assert clock() - began < 1
        assert (await state_of(jobs, "a"), worker.at_work, jobs.running) == (JobState.PENDING, 0, 0)
        await jobs.submit(new("b"))
        await asyncio.sleep(600)
        assert await state_of(jobs, "b") is JobState.PENDING
    async with running(tmp_path, Worker()) as jobs:
        for name in "ab":
            assert (await until(jobs, name, *OVER)).job.state is JobState.SUCCEEDED


@virtual_time
async def test_after_a_death_files_are_begun_one_at_a_time_until_those_that_ran_are_over(tmp_path: Path) -> None:
    class WaitsAtThird(Worker):
        """Notes who was at work whenever a file was begun."""

        def __init__(self) -> None:
            super().__init__()
            self.beside: list[int] = []

        async def __call__(self, claim: Claim, progress: Progress) -> JobResult:
            self.beside.append(self.at_work)
            if claim.url == "c/0":
                self.gate.clear()
            return await super().__call__(claim, progress)

    store = JobsStore(tmp_path / "jobs.sqlite")
    for name in "abcde":
        store.add(new(name), 0.0, 100)
    assert store.claim(0.0)
    assert store.claim(0.0)
    store.close()  # as a server that is killed leaves it
    worker = WaitsAtThird()
    worker.gate.clear()
    async with running(tmp_path, worker, at_once=3) as jobs:
        await until(jobs, "a", JobState.RUNNING)
        await settle()
        assert worker.at_work == 1
        worker.gate.set()
        await holds(lambda: worker.at_work == 3)
        assert (worker.begun, worker.beside) == (["a/0", "b/0", "c/0", "d/0", "e/0"], [0, 0, 0, 1, 2])
        worker.gate.set()
        await until(jobs, "e", *OVER)


@virtual_time
async def test_another_server_waits_for_the_folder_and_takes_over(tmp_path: Path) -> None:
    first = Worker()
    first.gate.clear()
    async with running(tmp_path, first) as jobs:
        await jobs.submit(new("a"))
        await until(jobs, "a", JobState.RUNNING)
        standby = running(tmp_path, Worker())
        other = await standby.__aenter__()
        assert "Another server" in (other.problem or "")
        with pytest.raises(Overloaded, match="Another server"):
            await other.submit(new("b"))
        with pytest.raises(Overloaded, match="Another server"):
            await other.find("a", None)
    await holds(lambda: not other.problem)
    assert (await until(other, "a", *OVER)).job.state is JobState.SUCCEEDED
    await standby.__aexit__(None, None, None)


@virtual_time
async def test_a_job_that_this_version_cannot_read_holds_nobody_up(tmp_path: Path) -> None:
    async with running(tmp_path, Worker()) as jobs:
        await jobs.suspend()
        for name in ("no json", "more", "less", "good"):
            await jobs.submit(new(name))
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database, database:
        for name, wish in (("no json", "{"), ("more", '{"channels": [], "model": "m", "x": 1}'), ("less", "{}")):
            database.execute("UPDATE job SET wish = ? WHERE id = ?", (wish, name))
    async with running(tmp_path, Worker()) as jobs:
        assert (await until(jobs, "good", *OVER)).job.state is JobState.SUCCEEDED
        for name in ("no json", "more", "less"):
            (file,) = (await until(jobs, name, *OVER)).job.files
            assert file.failure is Failure.INTERNAL


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "jobs.sqlite").write_bytes(b"This is no database at all." * 100),
        lambda folder: (folder / "jobs.sqlite").mkdir(),
        lambda folder: (folder / "lock").mkdir(),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    @virtual_time
    async def look() -> None:
        spoil(tmp_path)
        async with running(tmp_path, Worker()) as jobs:
            with pytest.raises(Overloaded, match="the server's log has the details"):
                await jobs.submit(new("a"))

    look()


@virtual_time
async def test_a_result_that_a_killed_server_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "half.part").write_text("{")
    (tmp_path / "results" / "unknown.json").write_text("{}")
    async with running(tmp_path, Worker()):
        assert results(tmp_path) == []


# What is kept


@virtual_time
async def test_jobs_and_results_go_when_their_time_is_over(tmp_path: Path) -> None:
    async with running(tmp_path, Worker()) as jobs:
        await jobs.submit(new("secret-address"))
        (file,) = (await until(jobs, "secret-address", *OVER)).job.files
        assert file.result is not None
        await asyncio.sleep(KEEP_S - 61)
        assert await jobs.result(file.result)
        await asyncio.sleep(62)
        assert await jobs.result(file.result) is None
        await asyncio.sleep(60)
        assert await jobs.find("secret-address", None) is None
        assert results(tmp_path) == []
        assert b"secret-address" not in everything_in(tmp_path)


@virtual_time
async def test_what_is_kept_for_seconds_goes_after_seconds(tmp_path: Path) -> None:
    async with running(tmp_path, Worker(), keep_s=5) as jobs:
        await jobs.submit(new("a"))
        await until(jobs, "a", *OVER)
        await asyncio.sleep(11)
        assert await jobs.find("a", None) is None
        assert results(tmp_path) == []


@virtual_time
async def test_a_disk_without_room_for_results(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")  # no folder, so that nothing can be written into it
    worker = Worker()
    async with running(tmp_path, worker) as jobs:
        assert jobs.problem is not None
    (tmp_path / "results").unlink()
    async with running(tmp_path, worker) as jobs:
        (tmp_path / "results").write_text("")
        await jobs.submit(new("a"))
        found = await until(jobs, "a", *OVER)
        assert found.job.files[0].failure is Failure.INTERNAL
        assert len(worker.begun) == MAX_ATTEMPTS


@virtual_time
async def test_metrics(tmp_path: Path) -> None:
    metrics = Metrics()
    worker = Worker(MediaError("no"))
    worker.gate.clear()
    jobs = Jobs(JobsOptions(tmp_path, at_once=1), worker, metrics, asyncio.get_running_loop().time)
    task = asyncio.create_task(jobs.run())
    await holds(lambda: not jobs.problem)
    for name in "abc":
        await jobs.submit(new(name))
    await until(jobs, "a", JobState.RUNNING)
    await jobs.cancel("c", None)
    await settle()
    told = metrics.render().decode()
    assert "asr_job_files_waiting 1.0" in told
    assert "asr_job_files_running 1.0" in told
    worker.gate.set()
    await until(jobs, "b", *OVER)
    told = metrics.render().decode()
    for result in ("succeeded", "failed", "canceled"):
        assert f'asr_job_files_total{{result="{result}"}} 1.0' in told
    task.cancel()
    await asyncio.wait({task})
