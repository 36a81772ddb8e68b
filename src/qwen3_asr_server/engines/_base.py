"""What an engine is: three methods, and streams that own their state. `Mortal`, `Limited`, `Counting` are optional.

An engine module exposes `ENGINE`, a class that takes the settings of `EngineOptions` and nothing else.
The engine is shared by all sessions; whatever belongs to one piece lives in its stream, and session
options travel with `open_stream`, never as attributes of the engine.

A step gets ALL audio of the piece so far, not only what is new: a stream that keeps state feeds itself
what it has not heard, a stateless one decodes the whole, and one that lost its state starts over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from qwen3_asr_server.domain import EngineInfo, Hypothesis, Samples, StepKind, StreamOptions, Word


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings an engine may read. Each engine uses the ones that mean something to it."""

    model_path: str = "Qwen/Qwen3-ASR-1.7B"
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.5
    max_new_tokens: int = 32
    decode_timeout_s: float = 3.0
    """Longest step, besides half of the audio that is new to it; waiting inside the engine does not count."""
    queue_timeout_s: float = 60.0
    """Longest wait inside the engine."""
    longest_interval_s: float = 2.0
    """Longest interval between two partials of a speaking session that the server promises."""
    kv_cache_bytes: int | None = None
    """Memory for the KV cache of engines that have one; None takes a share of `gpu_memory_utilization`."""
    reserved_bytes: int = 0
    """Memory of the card, within `gpu_memory_utilization`, that belongs to the aligner."""
    max_decoders: int = 4
    """Decoders of the embedded engine: incremental streams that can be open at once."""
    server_urls: Sequence[str] = ()
    """Servers that a remote engine asks: `http://host:port`, without a slash at the end."""
    server_key: str = field(default="", repr=False)
    """What opens them; empty where they want none."""
    connect_timeout_s: float = 2.0
    """A server that takes no connection, or does not say that it is well, for this long counts as dead."""


@dataclass(frozen=True, slots=True)
class AlignerOptions:
    """Settings of the forced aligner."""

    model_path: str = "Qwen/Qwen3-ForcedAligner-0.6B"
    dtype: str = "auto"


class Aligner(Protocol):
    """A forced aligner, shared by all sessions: for engines that give no word times."""

    @property
    def model(self) -> str:
        """For people: which weights."""
        ...

    @property
    def dead(self) -> bool:
        """Whether it has been started and serves nobody any more, until it is stopped and started."""
        ...

    async def start(self) -> None:
        """Load and warm up.

        Raises:
            EngineError: with a reason a user can act upon.
        """
        ...

    async def stop(self) -> None:
        """Release everything; what runs fails. Safe to call twice, or without `start`."""
        ...

    async def align(self, audio: Samples, text: str, language: str | None) -> Sequence[Word]:
        """Find where each word of a text is spoken.

        Args:
            audio: float32 [n], mono, 16 kHz, in [-1, 1], of any length.
            text: what is said in it.
            language: wire code; None if unknown.

        Returns:
            Words in order, without punctuation, their times relative to the audio and never going back; none for a
            language that the aligner does not know.

        Raises:
            EngineError: the words could not be placed.
        """
        ...


class EngineStream(Protocol):
    """The decoding of one piece. Steps come one at a time, with growing audio, the FINAL last."""

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Decode the piece so far.

        Args:
            audio: float32 [n], mono, 16 kHz, in [-1, 1]; n is a multiple of `GRID_SAMPLES`. Usually an
                extension of the last step's audio; a FINAL may also be shorter (a forced cut).
            kind: a FINAL waits for its turn and always answers; the others answer None when the engine
                has no room now.

        Raises:
            EngineError: this step failed; the stream may be asked again.
        """
        ...

    async def close(self) -> None:
        """Give everything back. Called once, also after a failure or in mid-step after cancellation."""
        ...


class Engine(Protocol):
    """A recogniser shared by all sessions."""

    @property
    def info(self) -> EngineInfo:
        """What it is and can do. Known before `start`."""
        ...

    async def start(self) -> None:
        """Load and warm up.

        Raises:
            EngineError: with a reason a user can act upon.
        """
        ...

    async def stop(self) -> None:
        """Release everything; open streams fail. Safe to call twice, or without `start`."""
        ...

    def open_stream(self, options: StreamOptions) -> EngineStream:
        """Begin a piece. Cheap: nothing is allocated before the first step."""
        ...


@runtime_checkable
class Mortal(Protocol):
    """Optional: an engine that can die as a whole though nobody stopped it, and does not recover by itself.

    The runtime then fails what was open, calls `stop`, and `start` again. An engine that replaces what dies inside
    it, as one with several processes or servers behind it, has no such property.
    """

    @property
    def dead(self) -> bool:
        """Whether a started engine can answer nothing any more.

        Cheap: asked once a second, and after every step that raised `EngineCrashed`. False before `start` and
        after `stop`.
        """
        ...


@runtime_checkable
class Limited(Protocol):
    """Optional: an engine whose open pieces share something that can be used up, or be gone for a while."""

    @property
    def full(self) -> bool:
        """Whether the piece of a newcomer would find no room now. Cheap: asked for each new session."""
        ...


@runtime_checkable
class Counting(Protocol):
    """Optional: an engine that counts what it does, for `/stats` and `/metrics`."""

    def stats(self) -> Mapping[str, int | float]:
        """Return what it knows of itself, by names like `cached_tokens`; empty when it does not run.

        An `int` counts since `start` and only grows; a `float` is a level of now.
        """
        ...
