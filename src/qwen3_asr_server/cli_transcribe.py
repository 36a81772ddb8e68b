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
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.text.languages import find

if TYPE_CHECKING:
    from qwen3_asr_server.domain import EngineInfo
    from qwen3_asr_server.runtime.media import MediaLimits
    from qwen3_asr_server.runtime.services import Services
    from qwen3_asr_server.text.transcript import Transcript

Format = Literal["text", "json", "srt", "vtt", "verbose_json"]

EXIT_CODES: Final = (
    "exit status: 0 all is written; 1 something failed, and standard error says what; 2 the command line is wrong, "
    "and nothing was done; 130 ended by Ctrl-C, files that were finished stay"
)

_ENDINGS: Final[dict[Format, str]] = {
    "text": ".txt",
    "json": ".json",
    "srt": ".srt",
    "vtt": ".vtt",
    "verbose_json": ".json",
}
_SHOWN_EVERY_S: Final = 0.1
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


def run(services: "Services", limits: "MediaLimits", wishes: Wishes, warnings: Sequence[str] = ()) -> int:
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
        _make_folder(wishes)
    except Misused as misuse:
        screen.tell(str(misuse))
        return 2
    for warning in [*warnings, *_vain(wishes, services.engine_info)]:
        screen.warn(warning)
    return asyncio.run(_Run(services, limits, wishes, screen).all(jobs))


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
            raise Misused(f"{_shown(job.target)} would be written for more than one file.")
        if place in sources:
            raise Misused(f"{_shown(job.target)} would be written over a recording.")
    return jobs


class Screen:
    """Standard error: sentences, and a line of progress where a person may be looking.

    Args:
        quiet: tell failures only.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._moving = not quiet and sys.stderr.isatty()
        self._shown = False
        self._next_at = 0.0

    def tell(self, sentence: str) -> None:
        """Say what failed."""
        self.clear()
        sys.stderr.write(f"qwen3-asr-server: {sentence}\n")

    def warn(self, sentence: str) -> None:
        """Say what else is worth knowing."""
        if not self._quiet:
            self.tell(f"warning: {sentence}")

    def note(self, text: str) -> None:
        """Show where things stand, until the next line."""
        if self._moving:
            # A line that wraps could not be taken back.
            room = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:room]}")
            sys.stderr.flush()
            self._shown = True

    def progress(self, name: str) -> Callable[[float, float | None], None]:
        """Return what shows how much of a file is done."""

        def show(done_s: float, total_s: float | None) -> None:
            now = time.monotonic()
            if now >= self._next_at:
                self._next_at = now + _SHOWN_EVERY_S
                self.note(f"{done_s:.0f}/{total_s:.0f} s  {name}" if total_s else f"{done_s:.0f} s  {name}")

        return show

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


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
                failed += not await self._done(job, _shown(job.source) + place)
        finally:
            self._screen.clear()
            await self._services.stop()
        return 1 if failed else 0

    def _may_begin(self, job: Job) -> bool:
        reason = _obstacle(job, self._wishes)
        if reason:
            self._screen.tell(reason)
        return not reason

    async def _done(self, job: Job, name: str) -> bool:
        """Transcribe one file; tell of a failure and return False."""
        try:
            transcript = await self._transcript(job, name)
        except AsrServerError as error:
            self._screen.tell(f"{_shown(job.source)}: {error.message}")
            return False
        content = rendered(transcript, self._wishes).encode("utf-8")
        self._screen.clear()
        try:
            if job.target is None:
                _print(content)
            else:
                _write(job.target, content, force=self._wishes.force)
        except OSError as problem:
            where = "Standard output" if job.target is None else _shown(job.target)
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
            self._screen.warn(f"{_shown(job.source)}: The file breaks off; what is there has been transcribed.")
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


def _target(source: Path, wishes: Wishes) -> Path:
    folder = wishes.output_dir or source.parent
    return folder / (source.stem + _ENDINGS[wishes.form])


def _place(path: Path) -> Path:
    """Return the one name of a place, whichever way leads to it."""
    return path.parent.resolve() / path.name


def _check_language(wishes: Wishes, info: "EngineInfo") -> None:
    if wishes.language is not None and wishes.language not in info.languages:
        known = ", ".join(sorted(info.languages))
        raise Misused(f"The engine {info.name} does not know the language {wishes.language}; it knows {known}.")


def _make_folder(wishes: Wishes) -> None:
    folder = wishes.output_dir
    if folder is not None and folder != _STANDARD_OUTPUT:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise Misused(f"{_shown(folder)} is no folder and cannot be made: {problem.strerror}.") from None


def _vain(wishes: Wishes, info: "EngineInfo") -> Iterator[str]:
    """Yield what has no effect."""
    if wishes.context and not info.context:
        yield f"--context has no effect: the engine {info.name} takes none."
    if wishes.words and not info.word_times:
        yield f"--words has no effect: the engine {info.name} has no word times, and WORD_TIMES is off."
    elif wishes.words and wishes.form in ("text", "json"):
        yield f"--words has no effect on the format {wishes.form}."


def _obstacle(job: Job, wishes: Wishes) -> str | None:
    """Return why a job cannot succeed, as far as that is known before."""
    source, target = job.source, job.target
    try:
        source.stat()
    except OSError as problem:
        return f"{_shown(source)}: {problem.strerror}."
    if source.is_dir():
        return f"{_shown(source)}: Is a folder; name the files in it."
    if not os.access(source, os.R_OK):
        return f"{_shown(source)}: Permission denied."
    if target is None:
        return None
    if target.is_dir() or (os.path.lexists(target) and not wishes.force):
        return f"{_shown(target)} is there already" + ("." if target.is_dir() else "; --force replaces it.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return f"{_shown(target)} cannot be written: Permission denied."
    return None


def _print(content: bytes) -> None:
    """Write to standard output, in UTF-8 whatever the locale."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _write(target: Path, content: bytes, *, force: bool) -> None:
    """Write a file as a whole or not at all."""
    part = target.with_name(f".qwen3-asr-{os.getpid()}.part")
    try:
        part.write_bytes(content)
        if not force and os.path.lexists(target):
            raise FileExistsError(0, "it has come into being meanwhile")
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _shown(path: Path) -> str:
    """Return a path for a terminal, which must not be steered by it."""
    return "".join(char if char.isprintable() else "?" for char in str(path))
