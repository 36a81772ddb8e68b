"""Jobs in SQLite: any order of submitting, working, cancelling, dying and forgetting, against a plain model."""

import sqlite3
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from qwen3_asr_server.runtime._jobs_store import MAX_ATTEMPTS, JobsStore, StoreFull
from qwen3_asr_server.runtime.job_values import Claim, Failure, JobsQuery, JobState, JobWish, NewJob

KEEP_S = 100.0
MOST = 6
WISH = JobWish("model", "zh", "Wu Tang", words=True, channels=(0, 1), details={"hidden": ["衣服"]})


def new(id_: str, files: int = 1, owner: str | None = None) -> NewJob:
    return NewJob(id_, owner, "form", "fun-asr", WISH, tuple(f"http://host/{id_}/{n}" for n in range(files)))


@pytest.fixture
def store(tmp_path: Path) -> JobsStore:
    return JobsStore(tmp_path / "jobs.sqlite")


@dataclass
class File:
    """A file as it should be."""

    state: JobState = JobState.PENDING
    attempts: int = 0
    result: str | None = None


@dataclass
class Model:
    """A job as it should be."""

    owner: str | None
    files: list[File]
    canceled: bool = False
    ended: float | None = None

    @property
    def state(self) -> JobState:
        states = {file.state for file in self.files}
        if self.canceled:
            return JobState.CANCELED
        if states == {JobState.PENDING}:
            return JobState.PENDING
        if states & {JobState.PENDING, JobState.RUNNING}:
            return JobState.RUNNING
        return JobState.SUCCEEDED if JobState.SUCCEEDED in states else JobState.FAILED


class Machine(RuleBasedStateMachine):
    """Everything that can happen to jobs; the store is closed and opened again in between."""

    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "jobs.sqlite"
        self.store = JobsStore(self.path)
        self.jobs: dict[str, Model] = {}
        self.now = 1000.0
        self.made = 0
        self.results = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def note_end(self, job: Model) -> None:
        if job.state.over and job.ended is None:
            job.ended = self.now

    def pending(self) -> list[tuple[str, int]]:
        return [
            (id_, place)
            for id_, job in self.jobs.items()
            for place, file in enumerate(job.files)
            if file.state is JobState.PENDING
        ]

    @rule(files=st.integers(1, 3), owner=st.sampled_from([None, "a", "b"]))
    def submit(self, files: int, owner: str | None) -> None:
        self.made += 1
        id_ = f"job{self.made}"
        open_files = sum(not file.state.over for job in self.jobs.values() for file in job.files)
        if open_files + files > MOST:
            with pytest.raises(StoreFull):
                self.store.add(new(id_, files, owner), self.now, MOST)
            return
        self.store.add(new(id_, files, owner), self.now, MOST)
        self.jobs[id_] = Model(owner, [File() for _ in range(files)])

    @rule(target=claims)
    def claim(self) -> Claim:
        claim = self.store.claim(self.now)
        waiting = self.pending()
        if claim is None:
            assert not waiting
            return Claim("none", 0, "", "", WISH, 1)
        assert (claim.job, claim.place) == waiting[0]
        file = self.jobs[claim.job].files[claim.place]
        file.state, file.attempts = JobState.RUNNING, file.attempts + 1
        assert (claim.attempt, claim.wish, claim.form) == (file.attempts, WISH, "form")
        assert claim.url == f"http://host/{claim.job}/{claim.place}"
        return claim

    @rule(claim=claims, outcome=st.sampled_from(["succeed", "fail", "put_back"]))
    def end(self, claim: Claim, outcome: str) -> None:
        job = self.jobs.get(claim.job)
        file = job.files[claim.place] if job else None
        wanted = file is not None and file.state is JobState.RUNNING
        match outcome:
            case "succeed":
                self.results += 1
                state, result = JobState.SUCCEEDED, f"result{self.results}"
                told = self.store.succeed(claim, self.now, 2.5, result)
            case "fail":
                state, result = JobState.FAILED, None
                told = self.store.fail(claim, self.now, Failure.MISSING, "There is no such file.")
            case _:
                state, result = JobState.PENDING, None
                told = self.store.put_back(claim, self.now)
        assert told == wanted
        if wanted and job is not None and file is not None:
            file.state, file.result = state, result
            self.note_end(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), by=st.sampled_from([None, "a", "b"]))
    def cancel(self, data: st.DataObject, by: str | None) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id_]
        canceled = 0
        if by in (None, job.owner) and not job.state.over:
            for file in job.files:
                if not file.state.over:
                    file.state = JobState.CANCELED
                    canceled += 1
            job.canceled = True
            self.note_end(job)
        assert self.store.cancel(id_, by, self.now) == canceled

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        if not killed:
            self.store.give_back(self.now)
        self.store.close()
        self.store = JobsStore(self.path)
        self.store.recover(self.now)
        for job in self.jobs.values():
            for file in job.files:
                if file.state is JobState.RUNNING:
                    over = killed and file.attempts >= MAX_ATTEMPTS
                    file.state = JobState.FAILED if over else JobState.PENDING
                    file.attempts -= not killed
            self.note_end(job)

    @rule(seconds=st.sampled_from([1.0, 60.0, 200.0]))
    def forget(self, seconds: float) -> None:
        self.now += seconds
        old = {id_ for id_, job in self.jobs.items() if job.ended is not None and job.ended < self.now - KEEP_S}
        results = sorted(file.result for id_ in old for file in self.jobs.pop(id_).files if file.result)
        assert sorted(self.store.forget(self.now - KEEP_S)) == results

    @invariant()
    def all_jobs_are_as_they_should_be(self) -> None:
        waiting = self.pending()
        assert self.store.waiting == len(waiting)
        for id_, job in self.jobs.items():
            found = self.store.find(id_, job.owner)
            assert found is not None
            assert (found.state, found.ended) == (job.state, job.ended)
            assert [(file.state, file.result) for file in found.files] == [(f.state, f.result) for f in job.files]
            if job.state is JobState.PENDING:
                assert waiting[found.ahead][0] == id_
            if job.owner == "a":
                assert self.store.find(id_, "b") is None
        assert self.store.results() == {f.result for job in self.jobs.values() for f in job.files if f.result}


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=15, stateful_step_count=25)


def test_what_kills_the_server_is_given_up(store: JobsStore) -> None:
    store.add(new("poison"), 1.0, MOST)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = store.claim(2.0)
        assert claim is not None
        assert claim.attempt == attempt
        store.recover(3.0)
    found = store.find("poison", None)
    assert found is not None
    assert (found.state, found.files[0].failure) == (JobState.FAILED, Failure.CRASHED)
    assert found.files[0].message
    assert store.claim(4.0) is None


def test_a_death_counts_for_what_was_begun_alone(store: JobsStore) -> None:
    for name in ("poison", "neighbour"):
        store.add(new(name), 1.0, MOST)
        assert store.claim(2.0)
    for left in (2, 2, 1):
        store.recover(3.0)
        assert store.suspects == left
        claim = store.claim(4.0)
    assert claim is not None
    assert (claim.job, claim.attempt) == ("neighbour", 2)
    assert store.succeed(claim, 5.0, 1.0, "result")
    assert store.suspects == 0
    states = [found.state for name in ("poison", "neighbour") if (found := store.find(name, None))]
    assert states == [JobState.FAILED, JobState.SUCCEEDED]


def test_what_is_cancelled_is_no_suspect(store: JobsStore) -> None:
    store.add(new("a"), 1.0, MOST)
    assert store.claim(2.0)
    store.recover(3.0)
    store.cancel("a", None, 4.0)
    assert store.suspects == 0


def test_ends_that_were_planned_do_not_count(store: JobsStore) -> None:
    store.add(new("patient"), 1.0, MOST)
    for _ in range(2 * MAX_ATTEMPTS):
        claim = store.claim(2.0)
        assert claim is not None
        assert claim.attempt == 1
        store.give_back(3.0)


def test_what_is_worked_on_is_not_given_back(store: JobsStore) -> None:
    store.add(new("two", files=2), 1.0, MOST)
    kept, lost = store.claim(2.0), store.claim(2.0)
    assert kept is not None
    assert lost is not None
    store.give_back(3.0, but={(kept.job, kept.place)})
    assert store.claim(4.0) == lost
    assert store.claim(4.0) is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (JobsQuery(), ["c", "b", "a"]),
        (JobsQuery(owner="me"), ["b"]),
        (JobsQuery(state=JobState.RUNNING), ["a"]),
        (JobsQuery(state=JobState.PENDING), ["c", "b"]),
        (JobsQuery(model="fun-asr"), ["c", "b", "a"]),
        (JobsQuery(model="other"), []),
        (JobsQuery(since=2.0), ["c", "b"]),
        (JobsQuery(until=2.0), ["b", "a"]),
        (JobsQuery(page=2, page_size=2), ["a"]),
        (JobsQuery(page=3, page_size=2), []),
    ],
)
def test_listing(store: JobsStore, query: JobsQuery, expected: list[str]) -> None:
    for at, (id_, owner) in enumerate([("a", None), ("b", "me"), ("c", "you")], 1):
        store.add(new(id_, owner=owner), float(at), MOST)
    store.claim(4.0)
    total, found = store.listed(query)
    assert [job.id for job in found] == expected
    assert total == (3 if query.page_size == 2 else len(expected))


def test_results_are_held_for_their_time(store: JobsStore) -> None:
    store.add(new("two", files=2), 1.0, MOST)
    for name in ("first", "second"):
        claim = store.claim(2.0)
        assert claim is not None
        assert not store.holds(name, 0.0)
        store.succeed(claim, 5.0, 1.0, name)
        assert store.holds(name, 5.0)
    assert not store.holds("first", 5.1)
    assert not store.holds("third", 0.0)


def test_nothing_of_what_was_forgotten_is_left_in_the_folder(store: JobsStore, tmp_path: Path) -> None:
    store.add(new("secret-address"), 1.0, MOST)
    store.cancel("secret-address", None, 2.0)
    assert any(b"secret-address" in path.read_bytes() for path in tmp_path.iterdir())
    store.forget(3.0)
    assert not any(b"secret-address" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobsStore(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        JobsStore(path)


def test_cancelled_jobs_are_no_way_to_fill_the_disk(tmp_path: Path) -> None:
    store = JobsStore(tmp_path / "jobs.sqlite", max_bytes=60_000)
    long = replace(new("long"), urls=("http://host/" + "x" * 8000,) * MOST)
    for _ in range(2):
        store.add(long, 0.0, MOST)
        store.cancel("long", None, 0.0)
        with pytest.raises(StoreFull, match="as many jobs"):
            store.add(replace(long, id="more"), 0.0, MOST)
        store.forget(1.0)


def test_an_owner_has_a_share_of_what_is_not_over(store: JobsStore) -> None:
    store.add(new("a", 2, "ann"), 0.0, MOST, 3)
    with pytest.raises(StoreFull, match="3 files of one API key"):
        store.add(new("b", 2, "ann"), 0.0, MOST, 3)
    store.add(new("c", 3, "bob"), 0.0, MOST, 3)
    claim = store.claim(0.0)
    assert claim is not None
    with pytest.raises(StoreFull):
        store.add(new("d", 2, "ann"), 0.0, 2 * MOST, 3)
    store.succeed(claim, 1.0, 1.0, "result")
    store.add(new("e", 2, "ann"), 0.0, 2 * MOST, 3)
