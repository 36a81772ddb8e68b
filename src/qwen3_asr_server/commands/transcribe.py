"""The command `transcribe`: recordings to texts or subtitles beside them, through an engine here or a server elsewhere.

    wishes ──▶ jobs: what is read, what is written ──▶ refused at once, or transcribed and written as a whole

Some files are under way at once. Texts go to files or, in the order of the files, to standard output; progress,
warnings and failures go to standard error. A file that fails is told in one sentence and does not keep the others from
their turn. Knows no settings, no engine by name and no formats of audio; `cli` says who transcribes.
"""

import argparse
import asyncio
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, get_args

from qwen3_asr_server.commands._address import Address, address_of
from qwen3_asr_server.commands._jobs import (
    Format,
    Job,
    Misused,
    Wishes,
    jobs_of,
    make_folder,
    obstacle,
    shown,
    write,
)
from qwen3_asr_server.commands._screen import Screen, drop_output
from qwen3_asr_server.commands._transcriber import Abilities, Transcriber, Written
from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.text.languages import find

EXIT_CODES: Final = (
    "exit status: 0 all is written; 1 something failed, and standard error says what; 2 the command line is wrong, "
    "and nothing was done; 130 ended by Ctrl-C, files that were finished stay"
)
FILES_AT_ONCE: Final = 4
"""Files under way at once; the engine decides how many pieces of them it decodes side by side."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser; what it finds are the fields of `Wishes`, and the key, which is a setting."""
    parser.epilog = EXIT_CODES
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", type=Path, help="recordings, audio or video, in any usual format")
    add("--language", metavar="CODE", type=_language, help="language of the speech, such as en; detected by default")
    add("--words", action="store_true", help="with the times of words: in verbose_json, and for subtitles to follow")
    add("--context", metavar="TEXT", help="names and terms that are likely to be said")
    add("--format", dest="form", choices=get_args(Format), help="what is written (default: text)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="write there instead of beside each file, under its name; - is standard output",
    )
    where.add_argument("--stdout", action="store_true", help="write to standard output, in the order of the files")
    add("--channels", action="store_true", help="keep the channels apart, as of a telephone call")
    add("--model", metavar="NAME", help="weights, by hub name or folder; with --url one of the server's models")
    add(
        "--url",
        type=_address,
        help="send the files to this server instead of starting an engine: ws://host:8001/api-ws/v1/realtime, "
        "or http://host:8001",
    )
    add("--api-key", dest="dashscope_api_key", metavar="KEY", help="of that server (DASHSCOPE_API_KEY)")
    add("--force", action="store_true", help="replace what is there")
    add("--quiet", action="store_true", help="no progress and no warnings")


def transcribe_files(transcriber: Transcriber, wishes: Wishes, warnings: Sequence[str] = ()) -> int:
    """Transcribe all files and return the exit status, see `EXIT_CODES`.

    Args:
        transcriber: not started yet; stopped afterwards.
        wishes: what is wanted.
        warnings: what else the user should know.

    Raises:
        AsrServerError: the engine did not start, or the server does not serve.
        KeyboardInterrupt: Ctrl-C. Nothing is left half written.
    """
    with Screen(wishes.quiet) as screen:
        return asyncio.run(_Run(transcriber, wishes, screen).all(warnings))


class _Run:
    """All jobs of one command."""

    def __init__(self, transcriber: Transcriber, wishes: Wishes, screen: Screen) -> None:
        self._transcriber = transcriber
        self._wishes = wishes
        self._screen = screen
        self._places = asyncio.Semaphore(FILES_AT_ONCE)

    async def all(self, warnings: Sequence[str]) -> int:
        """Do what can be done; return the exit status."""
        try:
            jobs = await self._jobs(warnings)
            # What cannot work is told before the engine loads and hours of audio are decoded.
            possible = [job for job in jobs if self._may_begin(job)]
            if possible:
                with self._screen.bar(self._transcriber.starting):
                    await self._transcriber.start()
            done = await self._done_with(possible)
            return 0 if done == len(jobs) else 1
        except Misused as misuse:
            self._screen.tell(str(misuse))
            return 2
        finally:
            await self._transcriber.stop()

    async def _jobs(self, warnings: Sequence[str]) -> list[Job]:
        """Return what is to be done, after a look at what can be asked for."""
        jobs = jobs_of(self._wishes)
        with self._screen.bar(self._transcriber.starting):
            abilities = await self._transcriber.abilities()
        _check_language(self._wishes, abilities)
        make_folder(self._wishes)
        for warning in [*warnings, *_vain(self._wishes, abilities)]:
            self._screen.warn(warning)
        return jobs

    def _may_begin(self, job: Job) -> bool:
        reason = obstacle(job, self._wishes)
        if reason:
            self._screen.tell(reason)
        return not reason

    async def _done_with(self, jobs: Sequence[Job]) -> int:
        """Do jobs side by side; return how many succeeded."""
        tasks: list[asyncio.Task[bool]] = []
        with self._screen.bar("all files", wanted=len(jobs) > 1) as bar:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    tasks.append(group.create_task(self._done(job, tasks[-1] if tasks else None)))
                for number, task in enumerate(asyncio.as_completed(tasks), 1):
                    await task
                    bar.show(number, len(jobs), f"{number}/{len(jobs)}")
        return sum(task.result() for task in tasks)

    async def _done(self, job: Job, before: "asyncio.Task[bool] | None") -> bool:
        """Transcribe one file; tell of a failure and return False.

        Args:
            job: what is to be done.
            before: the file that stands before it on standard output.
        """
        try:
            async with self._places:
                with self._screen.bar(shown(job.source)) as bar:
                    written = await self._transcriber.written(job.source, self._wishes, bar)
        except AsrServerError as error:
            self._screen.tell(f"{shown(job.source)}: {error.message}")
            return False
        if job.target is None and before is not None:
            await asyncio.wait({before})
        return self._put(job, written)

    def _put(self, job: Job, written: Written) -> bool:
        content = written.content.encode("utf-8")
        if written.cut_short:
            self._screen.warn(f"{shown(job.source)}: The file breaks off; what is there has been transcribed.")
        try:
            if job.target is None:
                with self._screen.aside():
                    _print(content)
            else:
                write(job.target, content, force=self._wishes.force)
        except OSError as problem:
            where = "Standard output" if job.target is None else shown(job.target)
            self._screen.tell(f"{where} cannot be written: {problem.strerror}.")
            return False
        return True


def _language(text: str) -> str | None:
    if text.lower() == "auto":
        return None
    language = find(text)
    if language is None:
        raise argparse.ArgumentTypeError(f"no language is called {text!r}; codes are such as en, zh or yue")
    return language.forced_code


def _address(text: str) -> Address:
    try:
        return address_of(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{text!r} is not the address of a server: {problem}") from None


def _check_language(wishes: Wishes, abilities: Abilities) -> None:
    if wishes.language is not None and wishes.language not in abilities.languages:
        known = ", ".join(sorted(abilities.languages))
        raise Misused(f"The engine {abilities.name} does not know the language {wishes.language}; it knows {known}.")


def _vain(wishes: Wishes, abilities: Abilities) -> Iterator[str]:
    """Yield what has no effect."""
    if wishes.context and not abilities.context:
        yield f"--context has no effect: the engine {abilities.name} takes none."
    if wishes.words and not abilities.word_times:
        yield f"--words has no effect: the engine {abilities.name} has no word times, and WORD_TIMES is off."
    elif wishes.words and wishes.form in ("text", "json"):
        yield f"--words has no effect on the format {wishes.form}."


def _print(content: bytes) -> None:
    """Write to standard output, in UTF-8 whatever the locale."""
    if sys.stdout is None:  # closed by whoever started the process
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        raise
