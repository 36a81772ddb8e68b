"""What the command `transcribe` is asked for, what it reads and writes for that, and how a result gets to its place.

A result is written as a whole or not at all, and over nothing unless that is wanted. Knows no engine and no audio.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from qwen3_asr_server.commands._address import Address

Format = Literal["text", "json", "srt", "vtt", "verbose_json"]

_STANDARD_OUTPUT: Final = Path("-")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for."""

    files: Sequence[Path]
    language: str | None = None
    """Wire code; None detects it."""
    words: bool = False
    context: str = ""
    form: Format = "text"
    output_dir: Path | None = None
    """None writes beside each input; `-` means standard output."""
    stdout: bool = False
    channels: bool = False
    """Keep the channels apart."""
    model: str = ""
    """Weights here, or a server's name of a model; empty means the default."""
    url: Address | None = None
    """The server that is to transcribe; None starts an engine here."""
    force: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A recording and where its transcript goes."""

    source: Path
    target: Path | None
    """None is standard output."""


class Misused(Exception):
    """The command line asks for what cannot be done. The message is for its user."""


def jobs_of(wishes: Wishes) -> list[Job]:
    """Return what is to be read and written.

    Raises:
        Misused: two files would be written to one place, or one over a recording.
    """
    if wishes.stdout or wishes.output_dir == _STANDARD_OUTPUT:
        if wishes.form in ("srt", "vtt") and len(wishes.files) > 1:
            raise Misused(f"Only one {wishes.form} fits on standard output.")
        return [Job(source, None) for source in wishes.files]
    jobs = [Job(source, _target(source, wishes)) for source in wishes.files]
    places = Counter(_place(job.target) for job in jobs if job.target)
    sources = {_place(source) for source in wishes.files}
    for job in jobs:
        assert job.target is not None
        place = _place(job.target)
        if places[place] > 1:
            raise Misused(f"{shown(job.target)} would be written for more than one file.")
        if place in sources:
            raise Misused(f"{shown(job.target)} would be written over a recording.")
    return jobs


def make_folder(wishes: Wishes) -> None:
    """Make the folder for the results, if it is wanted.

    Raises:
        Misused: it cannot be made.
    """
    folder = wishes.output_dir
    if folder is not None and folder != _STANDARD_OUTPUT:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise Misused(f"{shown(folder)} is no folder and cannot be made: {problem.strerror}.") from None


def obstacle(job: Job, wishes: Wishes) -> str | None:
    """Return why a job cannot succeed, as far as that is known before."""
    source, target = job.source, job.target
    try:
        source.stat()
    except OSError as problem:
        return f"{shown(source)}: {problem.strerror}."
    if source.is_dir():
        return f"{shown(source)}: Is a folder; name the files in it."
    if not os.access(source, os.R_OK):
        return f"{shown(source)}: Permission denied."
    if target is None:
        return None
    try:
        is_folder = target.is_dir()
    except OSError as problem:  # its name is too long, or its folder may not be searched
        return f"{shown(target)} cannot be written: {problem.strerror}."
    if is_folder or (os.path.lexists(target) and not wishes.force):
        return f"{shown(target)} is there already" + ("." if is_folder else "; --force replaces it.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return f"{shown(target)} cannot be written: Permission denied."
    return None


def write(target: Path, content: bytes, *, force: bool) -> None:
    """Write a file as a whole or not at all.

    Raises:
        OSError: it cannot be written, or is there and may not be replaced.
    """
    part = target.with_name(f".qwen3-asr-{os.getpid()}.part")
    try:
        part.write_bytes(content)
        if not force and os.path.lexists(target):
            raise FileExistsError(0, "it has come into being meanwhile")
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def shown(path: Path) -> str:
    """Return a path for a terminal, which must not be steered by it."""
    return "".join(char if char.isprintable() else "?" for char in str(path))


_ENDINGS: Final[dict[Format, str]] = {
    "text": ".txt",
    "json": ".json",
    "srt": ".srt",
    "vtt": ".vtt",
    "verbose_json": ".json",
}


def _target(source: Path, wishes: Wishes) -> Path:
    folder = wishes.output_dir or source.parent
    return folder / (source.stem + _ENDINGS[wishes.form])


def _place(path: Path) -> Path:
    """Return the one name of a place, whichever way leads to it."""
    return path.parent.resolve() / path.name
