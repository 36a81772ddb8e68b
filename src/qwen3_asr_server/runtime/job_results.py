"""What was heard in the files of jobs, on disk until it is fetched: one file each, under a name that nobody can guess.

The form is ours and free of any door's, so that a door can render what an older server has written. Files appear whole
or not at all. Knows neither jobs nor time; `jobs` says what is kept.
"""

import json
import os
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qwen3_asr_server.domain import Word
from qwen3_asr_server.runtime._media_wire import MediaKind
from qwen3_asr_server.runtime._storing import private_folder
from qwen3_asr_server.runtime.job_values import JobWish
from qwen3_asr_server.text.transcript import Segment, Transcript

_NAME_BYTES: Final = 32
_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class JobResult:
    """What was heard in a file."""

    form: str
    """How the door of the job answers; opaque here."""
    url: str
    wish: JobWish
    kind: MediaKind
    channels: tuple[int, ...]
    """Those that were transcribed, by their numbers in the file; 0 for all of them mixed."""
    transcript: Transcript


class ResultFolder:
    """Results in a folder of their own.

    Args:
        path: the folder; made when the first result is stored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, result: JobResult) -> str:
        """Store a result and return its name.

        Raises:
            OSError: there is no room.
        """
        name = secrets.token_urlsafe(_NAME_BYTES)
        part, whole = private_folder(self._path) / f"{name}.part", self._path / f"{name}{_SUFFIX}"
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(_packed(result))
                file.flush()
                os.fsync(file.fileno())
            part.rename(whole)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise
        return name

    def read(self, name: str) -> JobResult:
        """Return a result; its name must be one that `write` has given.

        Raises:
            OSError: it is gone.
        """
        return _unpacked((self._path / f"{name}{_SUFFIX}").read_text("utf-8"))

    def remove(self, names: Iterable[str]) -> None:
        """Delete results; those that are gone already do not matter."""
        for name in names:
            with suppress(FileNotFoundError):
                (self._path / f"{name}{_SUFFIX}").unlink()

    def keep_only(self, names: Collection[str]) -> None:
        """Delete everything else: what a server left behind that was killed."""
        kept = {f"{name}{_SUFFIX}" for name in names}
        for path in list(self._path.iterdir()) if self._path.exists() else ():
            if path.name not in kept:
                path.unlink()


def _packed(result: JobResult) -> str:
    values = {
        "form": result.form,
        "url": result.url,
        "wish": result.wish.to_json(),
        "kind": asdict(result.kind),
        "channels": result.channels,
        "duration": result.transcript.duration,
        "cut_short": result.transcript.cut_short,
        "segments": [
            [s.text, s.start, s.end, s.channel, s.language, s.confidence, [[w.text, w.start, w.end] for w in s.words]]
            for s in result.transcript.segments
        ],
    }
    return json.dumps(values, ensure_ascii=False)


def _unpacked(text: str) -> JobResult:
    values: dict[str, Any] = json.loads(text)
    segments = tuple(
        Segment(said, start, end, channel, language, tuple(Word(*word) for word in words), confidence)
        for said, start, end, channel, language, confidence, words in values["segments"]
    )
    channels = tuple(values["channels"])
    return JobResult(
        *(values["form"], values["url"], JobWish.from_json(values["wish"])),
        MediaKind(**values["kind"]),
        channels,
        Transcript(segments, values["duration"], values.get("cut_short", False), channels),  # older ones lack the third
    )
