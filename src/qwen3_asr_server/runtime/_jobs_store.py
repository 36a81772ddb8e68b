"""The jobs and their files in SQLite: what is to be done, what was done, and for whom. Survives the server, killed too.

    PENDING ⇄ RUNNING ──▶ SUCCEEDED | FAILED        CANCELED from either of the first two

A job is a list of files, and the file is what is worked on: first come, first served. Every method is one transaction.
A file that was being worked on when the server died is PENDING again, so many times; then it fails, as it may be what
kills the server. Until all such files are over, files should be worked on one at a time: then only the one that kills
is there when it kills again.

It knows no audio, no clock and no wire format, and what was heard lies elsewhere (`job_results`). One connection, used
from one thread; `jobs` is its only owner.
"""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qwen3_asr_server.runtime.job_values import Claim, Failure, Job, JobFile, JobsQuery, JobState, JobWish, NewJob

MAX_ATTEMPTS: Final = 3
"""How often work on a file begins before it is given up."""
MAX_STORE_BYTES: Final = 1024**3
"""Of all jobs together: those that are over stay for a while, however fast they came and were cancelled."""

_CRASHED: Final = "The server ended each time it worked on this file."
_FOREIGN: Final = "Another version of the server took this job in: submit it again."
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE job (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT, form TEXT NOT NULL,
    model TEXT NOT NULL, wish TEXT NOT NULL, state TEXT NOT NULL, submitted REAL NOT NULL, begun REAL, ended REAL);
CREATE INDEX job_ended ON job (ended);
CREATE TABLE file (
    job INTEGER NOT NULL REFERENCES job ON DELETE CASCADE, place INTEGER NOT NULL, url TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL, duration_s REAL NOT NULL, failure TEXT, message TEXT,
    result TEXT UNIQUE, PRIMARY KEY (job, place)) WITHOUT ROWID;
CREATE INDEX file_pending ON file (job, place) WHERE state = 'PENDING';
CREATE INDEX file_running ON file (job, place) WHERE state = 'RUNNING';
"""


class StoreFull(Exception):
    """There is no room for so many files; why, in words for the client."""


class JobsStore:
    """Jobs in one file.

    Args:
        path: of the database; made if it is not there.
        max_bytes: most that it may hold before further jobs are refused.

    Raises:
        sqlite3.Error: it cannot be read, or was written by a later version.

    Attributes:
        waiting: files that are PENDING. May be read from any thread, as the other.
        suspects: files not over with which the server that had the file before has died.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_STORE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._db = sqlite3.connect(path, isolation_level=None, timeout=1)
        self._db.row_factory = sqlite3.Row
        # What was deleted is overwritten: addresses of recordings may be secret.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise sqlite3.DatabaseError("the jobs were written by a later version of the server")
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        self._suspects: set[tuple[int, int]] = set()
        self.waiting = self._count_waiting()
        self.suspects = 0

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Clients

    def add(self, new: NewJob, now: float, most_files: int, most_of_owner: int | None = None) -> None:
        """Take in a job.

        Args:
            new: the job.
            now: seconds since 1970.
            most_files: that may be PENDING or RUNNING.
            most_of_owner: of which so many may belong to this one; None bounds nobody.

        Raises:
            StoreFull: there would be more of them, or too many jobs are kept.
        """
        with self._transaction():
            if self._used_bytes() >= self._max_bytes:
                raise StoreFull("The server keeps as many jobs as it may; try again later.")
            (running,) = self._one("SELECT count(*) FROM file WHERE state = 'RUNNING'")
            if self._count_waiting() + running + len(new.urls) > most_files:
                raise StoreFull(f"At most {most_files} files may wait to be transcribed; try again later.")
            if most_of_owner is not None and self._open_files_of(new.owner) + len(new.urls) > most_of_owner:
                raise StoreFull(f"At most {most_of_owner} files of one API key may wait to be transcribed.")
            number = self._db.execute(
                "INSERT INTO job (id, owner, form, model, wish, state, submitted) VALUES (?, ?, ?, ?, ?, 'PENDING', ?)",
                (new.id, new.owner, new.form, new.model, new.wish.to_json(), now),
            ).lastrowid
            self._db.executemany(
                "INSERT INTO file (job, place, url, state, attempts, duration_s) VALUES (?, ?, ?, 'PENDING', 0, 0)",
                [(number, place, url) for place, url in enumerate(new.urls)],
            )

    def find(self, id_: str, owner: str | None) -> Job | None:
        """Return a job, if this owner may see it; an owner of None sees all."""
        row = self._db.execute(
            "SELECT * FROM job WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)", (id_, owner)
        ).fetchone()
        return None if row is None else self._job(row)

    def listed(self, query: JobsQuery) -> tuple[int, list[Job]]:
        """Return how many jobs there are of this kind, and one page of them, the latest first."""
        where = (
            "FROM job WHERE (:owner IS NULL OR owner = :owner) AND (:state IS NULL OR state = :state)"
            " AND (:model IS NULL OR model = :model)"
            " AND (:since IS NULL OR submitted >= :since) AND (:until IS NULL OR submitted <= :until)"
        )
        values = {name: getattr(query, name) for name in ("owner", "state", "model", "since", "until")}
        (total,) = self._db.execute(f"SELECT count(*) {where}", values).fetchone()
        page = values | {"size": query.page_size, "skip": (query.page - 1) * query.page_size}
        rows = self._db.execute(f"SELECT * {where} ORDER BY number DESC LIMIT :size OFFSET :skip", page)
        return total, [self._job(row) for row in rows.fetchall()]

    def cancel(self, id_: str, owner: str | None, now: float) -> int:
        """Cancel a job, and return how many files that were not over it had: 0 if there is no such job."""
        with self._transaction():
            row = self._db.execute(
                "UPDATE job SET state = 'CANCELED', ended = ?3 WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)"
                " AND state IN ('PENDING', 'RUNNING') RETURNING number",
                (id_, owner, now),
            ).fetchone()
            if row is None:
                return 0
            return self._db.execute(
                "UPDATE file SET state = 'CANCELED' WHERE job = ? AND state IN ('PENDING', 'RUNNING')", tuple(row)
            ).rowcount

    # Work

    def claim(self, now: float) -> Claim | None:
        """Begin work on the next file; None if there is none, or it cannot be begun and has failed."""
        with self._transaction():
            row = self._db.execute(
                "UPDATE file SET state = 'RUNNING', attempts = attempts + 1 WHERE (job, place) ="
                " (SELECT job, place FROM file WHERE state = 'PENDING' ORDER BY job, place LIMIT 1)"
                " RETURNING job, place, url, attempts"
            ).fetchone()
            if row is None:
                return None
            self._db.execute("UPDATE job SET begun = coalesce(begun, ?) WHERE number = ?", (now, row["job"]))
            self._settle(row["job"], now)
            id_, form, text = self._one("SELECT id, form, wish FROM job WHERE number = ?", row["job"])
            try:
                wish = JobWish.from_json(text)
            except (ValueError, TypeError, KeyError):
                # Of another version. It would hold up all that come after it.
                self._db.execute(
                    "UPDATE file SET state = 'FAILED', failure = ?, message = ? WHERE job = ? AND place = ?",
                    (Failure.INTERNAL, _FOREIGN, row["job"], row["place"]),
                )
                self._settle(row["job"], now)
                return None
            return Claim(id_, row["place"], form, row["url"], wish, row["attempts"])

    def succeed(self, claim: Claim, now: float, duration_s: float, result: str) -> bool:
        """Note that a file was transcribed; tell whether anybody still wants it."""
        return self._end(claim, now, "state = 'SUCCEEDED', duration_s = ?, result = ?", (duration_s, result))

    def fail(self, claim: Claim, now: float, failure: Failure, message: str) -> bool:
        """Note that a file cannot be transcribed; tell whether anybody still wants it."""
        return self._end(claim, now, "state = 'FAILED', failure = ?, message = ?", (failure, message))

    def put_back(self, claim: Claim, now: float) -> bool:
        """Have a file begun again later; tell whether anybody still wants it."""
        return self._end(claim, now, "state = 'PENDING'", ())

    def give_back(self, now: float, *, but: Collection[tuple[str, int]] = ()) -> None:
        """Have everything begun again that was being worked on, as if it had not been begun.

        Args:
            now: seconds since 1970.
            but: jobs and places of files that are worked on now.
        """
        for number, place, _ in self._running(but):
            with self._transaction():
                self._db.execute(
                    "UPDATE file SET state = 'PENDING', attempts = attempts - 1 WHERE job = ? AND place = ?",
                    (number, place),
                )
                self._settle(number, now)

    def recover(self, now: float) -> None:
        """Have everything begun again with which the server died; fail what it died with so many times."""
        for number, place, attempts in self._running():
            over = attempts >= MAX_ATTEMPTS
            outcome = (JobState.FAILED, Failure.CRASHED, _CRASHED) if over else (JobState.PENDING, None, None)
            self._suspects.add((number, place))
            with self._transaction():
                self._db.execute(
                    "UPDATE file SET state = ?, failure = ?, message = ? WHERE job = ? AND place = ?",
                    (*outcome, number, place),
                )
                self._settle(number, now)

    # What is kept

    def holds(self, result: str, ended_after: float) -> bool:
        """Tell whether a result belongs to a job that did not end before."""
        row = self._db.execute(
            "SELECT 1 FROM file JOIN job ON job.number = file.job WHERE result = ? AND coalesce(ended, ?2) >= ?2",
            (result, ended_after),
        ).fetchone()
        return row is not None

    def results(self) -> set[str]:
        """Return the names of all results."""
        return {name for (name,) in self._db.execute("SELECT result FROM file WHERE result IS NOT NULL")}

    def forget(self, ended_before: float) -> list[str]:
        """Delete the jobs that ended before, and return the names of their results."""
        with self._transaction():
            rows = self._db.execute(
                "SELECT result FROM file JOIN job ON job.number = file.job WHERE ended < ? AND result IS NOT NULL",
                (ended_before,),
            ).fetchall()
            deleted = self._db.execute("DELETE FROM job WHERE ended < ?", (ended_before,)).rowcount
        if deleted:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return [name for (name,) in rows]

    # Parts

    def _running(self, but: Collection[tuple[str, int]] = ()) -> list[tuple[int, int, int]]:
        """Return number of the job, place and attempts of each file that is being worked on."""
        rows = self._db.execute(
            "SELECT id, number, place, attempts FROM file JOIN job ON number = job WHERE file.state = 'RUNNING'"
        ).fetchall()
        return [(number, place, attempts) for id_, number, place, attempts in rows if (id_, place) not in but]

    def _end(self, claim: Claim, now: float, change: str, values: tuple[object, ...]) -> bool:
        with self._transaction():
            row = self._db.execute(
                f"UPDATE file SET {change} WHERE job = (SELECT number FROM job WHERE id = ?) AND place = ?"  # noqa: S608
                " AND state = 'RUNNING' RETURNING job",
                (*values, claim.job, claim.place),
            ).fetchone()
            if row is not None:
                self._settle(row["job"], now)
            return row is not None

    def _settle(self, number: int, now: float) -> None:
        """Bring the state of a job in line with those of its files."""
        rows = self._db.execute("SELECT state, count(*) FROM file WHERE job = ? GROUP BY state", (number,))
        counts = {JobState(state): count for state, count in rows}
        begun = any(state is not JobState.PENDING for state in counts)
        if JobState.RUNNING in counts or JobState.PENDING in counts:
            state = JobState.RUNNING if begun else JobState.PENDING
        else:
            state = JobState.SUCCEEDED if JobState.SUCCEEDED in counts else JobState.FAILED
        ended = now if state.over else None
        self._db.execute("UPDATE job SET state = ?, ended = ? WHERE number = ?", (state, ended, number))

    def _job(self, row: sqlite3.Row) -> Job:
        files = self._db.execute("SELECT * FROM file WHERE job = ? ORDER BY place", (row["number"],)).fetchall()
        (ahead,) = self._one("SELECT count(*) FROM file WHERE state = 'PENDING' AND job < ?", row["number"])
        return Job(
            *(row["id"], row["form"], row["model"], JobState(row["state"])),
            *(row["submitted"], row["begun"], row["ended"]),
            files=tuple(
                JobFile(
                    *(file["url"], JobState(file["state"]), file["duration_s"]),
                    None if file["failure"] is None else Failure(file["failure"]),
                    *(file["message"], file["result"]),
                )
                for file in files
            ),
            ahead=ahead,
        )

    def _one(self, statement: str, *values: object) -> sqlite3.Row:
        row: sqlite3.Row = self._db.execute(statement, values).fetchone()
        return row

    def _count_waiting(self) -> int:
        (waiting,) = self._one("SELECT count(*) FROM file WHERE state = 'PENDING'")
        return int(waiting)

    def _is_open(self, file: tuple[int, int]) -> bool:
        statement = "SELECT count(*) FROM file WHERE job = ? AND place = ? AND state IN ('PENDING', 'RUNNING')"
        (found,) = self._one(statement, *file)
        return bool(found)

    def _open_files_of(self, owner: str | None) -> int:
        (found,) = self._one(
            "SELECT count(*) FROM (SELECT job FROM file WHERE state = 'PENDING' UNION ALL"
            " SELECT job FROM file WHERE state = 'RUNNING') CROSS JOIN job ON number = job WHERE owner IS ?",
            owner,
        )
        return int(found)

    def _used_bytes(self) -> int:
        pages, free, page_bytes = (
            self._one(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            waiting, suspects = self._count_waiting(), set(filter(self._is_open, self._suspects))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.waiting, self._suspects, self.suspects = waiting, suspects, len(suspects)
