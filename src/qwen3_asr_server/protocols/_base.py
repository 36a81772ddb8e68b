"""What a wire protocol is: a sans-IO machine between messages and commands.

The driver's contract, once for each connection:

1.  Make the protocol with a `Handshake` and what is offered, do 3, then send what `messages_to_send` holds.
2.  For every message from the peer: `parsed = Protocol.parse(message)`, a pure function that may run on
    a worker thread when the message is large; then `receive(parsed)`, then do 3, then obey `commands_received` in
    order and send `messages_to_send`.
3.  Ask `session_to_open`. If there is one, open it; commands go to it from then on, until it is over. If it cannot be
    opened, drop what `messages_to_send` holds, and `send_event(Closing(reason))` in its place.
4.  For every event of the session: `send_event(event)`, then obey `commands_received` and send `messages_to_send`.
5.  With `messages_to_send` take `errors_told`; they are counted.
6.  After each step look at `close_expected`: when it is not None, send what is pending, wait
    `grace_s` for the peer to close first, then close with its code. After `Closing` it is never None.

A protocol opens one session at a time: as soon as somebody connects, or whenever the peer asks for one. It gives no
commands while there is none. Nothing here raises on what a peer sends: bad input becomes an error message of the
protocol and, where the protocol demands it, a close.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from qwen3_asr_server.domain import SessionConfig, TurnDetection
from qwen3_asr_server.messages import Command, Event

IdFactory = Callable[[str], str]
"""Makes an id that was never used before from a prefix: `event_` → `event_4Tz…` (21 characters more)."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the opening request said. Authentication has already happened."""

    query: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this server offers to a session of this protocol."""

    model: str
    """The loaded model's own name."""
    languages: frozenset[str]
    """Wire codes that may be asked for."""
    default_language: str
    models: frozenset[str] = frozenset()
    """Names accepted besides the vendor's own."""
    turn_detection: TurnDetection | None = TurnDetection()
    """How a session begins; None begins in Manual mode."""
    default_threshold: float = 0.5
    """Speech probability that the wire's default sensitivity stands for."""
    emotion: str | None = "neutral"
    """Constant reported where the wire wants an emotion; None leaves the field out."""
    max_append_bytes: int = 15 * 1024 * 1024
    max_context_chars: int = 40_000
    max_errors: int = 100
    """Errors in a row, without one good event between them, after which the connection is closed."""
    finish_grace_s: float = 10.0
    """How long the socket stays open after the session's end, for the client to close it."""


Offers = Callable[[str | None], Capabilities]
"""What is offered with the model that a client names; a name that is not known here stands for the default."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A session that is to be opened."""

    model: str | None
    """As the client names it, see `Offers`."""
    config: SessionConfig
    """How it begins."""
    name: str = ""
    """What the client calls it, for the log."""


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is to be closed."""

    code: int
    reason: str
    grace_s: float = 0.0
    """Wait this long for the peer to close first."""


class ServerProtocol(Protocol):
    """One connection of one wire protocol."""

    name: ClassVar[str]
    path: ClassVar[str]
    """Where it is served; a trailing slash is accepted too."""

    def __init__(self, handshake: Handshake, offers: Offers, new_id: IdFactory) -> None:
        """Greet: whatever the protocol sends on connect is pending afterwards."""
        ...

    def session_to_open(self) -> SessionRequest | None:
        """Return the session that is to be opened now; each is asked for once."""
        ...

    @staticmethod
    def parse(message: str | bytes) -> Any:
        """Decode a message without touching any state. Never raises; errors are part of the result."""
        ...

    def receive(self, parsed: Any) -> None:
        """Take in what `parse` returned."""
        ...

    def commands_received(self) -> list[Command]:
        """Return the commands since the last call, oldest first."""
        ...

    def send_event(self, event: Event) -> None:
        """Queue what `event` looks like on the wire."""
        ...

    def messages_to_send(self) -> list[str | bytes]:
        """Return the messages since the last call, oldest first."""
        ...

    def errors_told(self) -> list[str]:
        """Return the wire's codes of the errors among the messages since the last call, for metrics."""
        ...

    @property
    def close_expected(self) -> Close | None:
        """How to end the connection, or None while it goes on."""
        ...
