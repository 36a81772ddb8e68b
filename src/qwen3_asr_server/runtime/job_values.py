"""Jobs and their files as they are asked for, kept, worked on and told.

Plain values between the doors, `jobs` and its store. Times are seconds since 1970, as they must mean the same after a
restart.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self


class JobState(StrEnum):
    """Where a job, or one of its files, is."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    """Of a job: at least one of its files."""
    FAILED = "FAILED"
    """Of a job: all of its files."""
    CANCELED = "CANCELED"

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (JobState.PENDING, JobState.RUNNING)


class Failure(StrEnum):
    """Why there is no transcript of a file."""

    MISSING = "missing"
    """Its server says that there is no such file."""
    FORBIDDEN = "forbidden"
    """Its server does not give it away."""
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    """This server does not read from there."""
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    UNREADABLE = "unreadable"
    SILENT = "silent"
    """Nobody speaks in it."""
    WORDLESS = "wordless"
    """Somebody speaks, but no word was recognised."""
    UNSUITABLE = "unsuitable"
    """What is wanted does not suit the file, or the model."""
    ENGINE = "engine"
    """Recognition failed, more than once."""
    CRASHED = "crashed"
    """The server ended each time it worked on it."""
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class JobWish:
    """What is wanted of each file of a job."""

    model: str
    """By its name in `Services.models`."""
    language: str | None = None
    """Forced, wire code; None detects it."""
    context: str = ""
    words: bool = False
    channels: tuple[int, ...] = ()
    """Those to transcribe, each apart; none mixes them all."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For the door alone; what JSON can say."""

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` has written."""
        values = json.loads(text)
        return cls(**{**values, "channels": tuple(values["channels"])})


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client asks for."""

    id: str
    owner: str | None
    """Opaque name of the client's key; None where the server asks for none."""
    form: str
    """How the door answers; opaque."""
    model: str
    """As the client named it."""
    wish: JobWish
    urls: tuple[str, ...]
    """At least one."""


@dataclass(frozen=True, slots=True)
class JobFile:
    """One file of a job."""

    url: str
    state: JobState
    duration_s: float
    """Of its audio, once it is known."""
    failure: Failure | None
    """Where it failed."""
    message: str | None
    """In words, for the client."""
    result: str | None
    """The name of what was heard, where it succeeded."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. Times are seconds since 1970."""

    id: str
    form: str
    model: str
    state: JobState
    submitted: float
    begun: float | None
    ended: float | None
    files: tuple[JobFile, ...]
    ahead: int
    """Files of others that come before its next one, while it is PENDING."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job, and how far it has come."""

    job: Job
    done_s: float
    """Audio that is transcribed, in seconds."""
    total_s: float | None
    """Audio in all its files; None while nobody knows."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A file to work on now."""

    job: str
    place: int
    form: str
    url: str
    wish: JobWish
    attempt: int
    """From 1."""


@dataclass(frozen=True, slots=True)
class JobsQuery:
    """Which jobs to list."""

    owner: str | None = None
    """None lists those of everybody."""
    state: JobState | None = None
    model: str | None = None
    since: float | None = None
    until: float | None = None
    """Submitted in this span, in seconds since 1970."""
    page: int = 1
    page_size: int = 10
