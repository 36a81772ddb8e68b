"""The command `transcribe`: recordings to texts or subtitles beside them, one after the other through one engine.

    wishes ──▶ jobs: what is read, what is written ──▶ refused at once, or transcribed and written as a whole

Texts go to files or to standard output; progress, warnings and failures go to standard error. A file that fails is
told in one sentence and does not keep the others from their turn. Knows no settings, no engine by name and no formats
of audio; `cli` builds the services and hands them over.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

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
from qwen3_asr_server.commands._screen import Screen
from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.text.languages import find

if TYPE_CHECKING:
    from qwen3_asr_server.domain import EngineInfo
    from qwen3_asr_server.runtime.media import MediaLimits
    from qwen3_asr_server.runtime.services import Services
    from qwen3_asr_server.text.transcript import Transcript

EXIT_CODES: Final = (
    "exit status: 0 all is written; 1 something failed, and standard error says what; 2 the command line is wrong, "
    "and nothing was done; 130 ended by Ctrl-C, files that were finished stay"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser; what it finds are the fields of `Wishes` and the path of the weights."""
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
    add("--model", dest="qwen3_asr_model_path", metavar="NAME", help="weights: hub name or folder")
    add("--force", action="store_true", help="replace what is there")
    add("--quiet", action="store_true", help="no progress and no warnings")


def transcribe_files(services: "Services", limits: "MediaLimits", wishes: Wishes, warnings: Sequence[str] = ()) -> int:
    """Transcribe all files and return the exit status, see `EXIT_CODES`.

    Args:
        services: not started yet; stopped afterwards.
        limits: what one recording may cost.
        wishes: what is wanted.
        warnings: what else the user should know.

    Raises:
        AsrServerError: the engine did not start.
        KeyboardInterrupt: Ctrl-C. Nothing is left half written.
    """
    screen = Screen(wishes.quiet)
    try:
        jobs = jobs_of(wishes)
        _check_language(wishes, services.engine_info)
        make_folder(wishes)
    except Misused as misuse:
        screen.tell(str(misuse))
        return 2
    for warning in [*warnings, *_vain(wishes, services.engine_info)]:
        screen.warn(warning)
    return asyncio.run(_Run(services, limits, wishes, screen).all(jobs))


class _Run:
    """All jobs of one command."""

    def __init__(self, services: "Services", limits: "MediaLimits", wishes: Wishes, screen: Screen) -> None:
        self._services = services
        self._limits = limits
        self._wishes = wishes
        self._screen = screen

    async def all(self, jobs: Sequence[Job]) -> int:
        """Do what can be done; return the exit status."""
        # What cannot work is told before the engine loads and hours of audio are decoded.
        possible = [job for job in jobs if self._may_begin(job)]
        failed = len(jobs) - len(possible)
        try:
            if possible:
                self._screen.note("Starting the engine")
                await self._services.start()
            for number, job in enumerate(possible, 1):
                place = f" ({number} of {len(possible)})" if len(possible) > 1 else ""
                failed += not await self._done(job, shown(job.source) + place)
        finally:
            self._screen.clear()
            await self._services.stop()
        return 1 if failed else 0

    def _may_begin(self, job: Job) -> bool:
        reason = obstacle(job, self._wishes)
        if reason:
            self._screen.tell(reason)
        return not reason

    async def _done(self, job: Job, name: str) -> bool:
        """Transcribe one file; tell of a failure and return False."""
        try:
            transcript = await self._transcript(job, name)
        except AsrServerError as error:
            self._screen.tell(f"{shown(job.source)}: {error.message}")
            return False
        content = rendered(transcript, self._wishes).encode("utf-8")
        self._screen.clear()
        try:
            if job.target is None:
                _print(content)
            else:
                write(job.target, content, force=self._wishes.force)
        except OSError as problem:
            where = "Standard output" if job.target is None else shown(job.target)
            self._screen.tell(f"{where} cannot be written: {problem.strerror}.")
            return False
        return True

    async def _transcript(self, job: Job, name: str) -> "Transcript":
        from qwen3_asr_server.runtime.media import open_media
        from qwen3_asr_server.session.recorded import TranscribeOptions

        wishes = self._wishes
        options = TranscribeOptions(wishes.language, wishes.context, words=wishes.words)
        async with open_media(job.source, self._limits, split_channels=wishes.channels) as media:
            transcript = await self._services.transcribe(media, options, self._screen.progress(name))
        if media.cut_short:
            self._screen.warn(f"{shown(job.source)}: The file breaks off; what is there has been transcribed.")
        return transcript


def rendered(transcript: "Transcript", wishes: Wishes) -> str:
    """Return a transcript in the form that was asked for, with a line break at its end.

    JSON is one line. Where channels are kept apart, JSON says of each what was said in it, and text has a line a
    segment that begins with the channel's number in brackets, if more than one speaks.
    """
    from qwen3_asr_server.text import subtitles

    match wishes.form:
        case "text" if len(transcript.channels) > 1:
            return "".join(f"[{segment.channel}] {segment.text}\n" for segment in transcript.segments)
        case "text":
            return subtitles.as_text(transcript)
        case "srt":
            return subtitles.as_srt(transcript)
        case "vtt":
            return subtitles.as_vtt(transcript)
        case "json":
            answer = subtitles.as_json(transcript)
        case "verbose_json":
            answer = subtitles.as_verbose_json(transcript, words=wishes.words)
            if wishes.channels:
                for entry, segment in zip(answer["segments"], transcript.segments, strict=True):
                    entry["channel"] = segment.channel
    if wishes.channels:
        texts = {number: transcript.of_channel(number).text for number in transcript.channels}
        answer["channels"] = [{"channel": number, "text": text} for number, text in texts.items()]
    return json.dumps(answer, ensure_ascii=False) + "\n"


def _language(text: str) -> str | None:
    if text.lower() == "auto":
        return None
    language = find(text)
    if language is None:
        raise argparse.ArgumentTypeError(f"no language is called {text!r}; codes are such as en, zh or yue")
    return language.forced_code


def _check_language(wishes: Wishes, info: "EngineInfo") -> None:
    if wishes.language is not None and wishes.language not in info.languages:
        known = ", ".join(sorted(info.languages))
        raise Misused(f"The engine {info.name} does not know the language {wishes.language}; it knows {known}.")


def _vain(wishes: Wishes, info: "EngineInfo") -> Iterator[str]:
    """Yield what has no effect."""
    if wishes.context and not info.context:
        yield f"--context has no effect: the engine {info.name} takes none."
    if wishes.words and not info.word_times:
        yield f"--words has no effect: the engine {info.name} has no word times, and WORD_TIMES is off."
    elif wishes.words and wishes.form in ("text", "json"):
        yield f"--words has no effect on the format {wishes.form}."


def _print(content: bytes) -> None:
    """Write to standard output, in UTF-8 whatever the locale."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
