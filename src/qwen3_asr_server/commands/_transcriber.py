"""What the command `transcribe` asks of the one who transcribes: an engine here, or a server elsewhere.

`_here` and `_there` are the two; `transcribe` knows neither.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qwen3_asr_server.commands._jobs import Wishes
from qwen3_asr_server.commands._screen import Bar
from qwen3_asr_server.errors import AsrServerError


@dataclass(frozen=True, slots=True)
class Abilities:
    """What can be asked for."""

    name: str
    """Of the engine."""
    languages: frozenset[str]
    """Wire codes."""
    context: bool
    """Whether it takes names and terms."""
    word_times: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A transcript in the form that was asked for."""

    content: str
    """With a line break at its end."""
    cut_short: bool = False
    """The recording ends before it should."""


class Transcriber(Protocol):
    """Who transcribes. `stop` ends it, whatever has happened before."""

    @property
    def starting(self) -> str:
        """What its start is called."""
        ...

    async def abilities(self) -> Abilities:
        """Return what it can do; called once, before `start`.

        Raises:
            AsrServerError: it cannot work.
        """
        ...

    async def start(self) -> None:
        """Get ready.

        Raises:
            AsrServerError: it cannot work.
        """
        ...

    async def stop(self) -> None:
        """Give everything back."""
        ...

    async def written(self, source: Path, wishes: Wishes, bar: Bar) -> Written:
        """Return the transcript of a file.

        Raises:
            AsrServerError: the file cannot be read, or recognition failed.
        """
        ...


class Unserved(AsrServerError):
    """A server cannot be reached, or does not do what is asked of it."""
