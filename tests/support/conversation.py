"""A small language for conversations with a sans-IO protocol: say, hear, tell, expect.

The protocol under test stands between a client (`says`, `hears`) and a session (`orders`, `tells`). Every
message and every command must be accounted for: a test ends with `is_silent`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from qwen3_asr_server.messages import Command, Configure, Event
from qwen3_asr_server.protocols import load_protocol
from qwen3_asr_server.protocols._base import Capabilities, Close, Handshake, Offers

VENDOR_MODEL = "qwen3-asr-flash-realtime"


class CountingIds:
    """Ids that a test can predict: `event_` and 21 digits, counted for each prefix."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, prefix: str) -> str:
        self._counts[prefix] += 1
        return f"{prefix}{self._counts[prefix]:021d}"


def capabilities(**changes: Any) -> Capabilities:
    """A server that knows English, Chinese and Cantonese."""
    offered = {"model": "tiny", "languages": frozenset({"en", "zh", "yue"}), "default_language": "en"} | changes
    return Capabilities(**offered)


class Dialogue:
    """One connection of any protocol whose messages are JSON objects, seen from both sides."""

    def __init__(self, protocol: str, query: Mapping[str, str], offers: Offers) -> None:
        self.protocol: Any = load_protocol(protocol)(Handshake(query=query), offers, CountingIds())
        self._heard: list[dict[str, Any]] = []
        self._ordered: list[Command] = []

    def says_raw(self, message: str | bytes) -> None:
        """The client sends a message of any kind."""
        self.protocol.receive(self.protocol.parse(message))

    def tells(self, *events: Event) -> None:
        """The session reports events."""
        for event in events:
            self.protocol.send_event(event)

    def hears_next(self) -> dict[str, Any]:
        """Return the client's next message."""
        self._collect()
        assert self._heard, "the client hears nothing more"
        return self._heard.pop(0)

    def orders(self, *commands: Command) -> None:
        """The next commands to the session are these."""
        self._collect()
        expected, self._ordered = self._ordered[: len(commands)], self._ordered[len(commands) :]
        assert expected == list(commands)

    @property
    def close(self) -> Close | None:
        """How the protocol wants the connection to end."""
        end: Close | None = self.protocol.close_expected
        return end

    def is_silent(self) -> None:
        """Neither side has anything more to take in."""
        self._collect()
        assert self._heard == []
        assert self._ordered == []

    def _collect(self) -> None:
        for message in self.protocol.messages_to_send():
            assert isinstance(message, str)
            message.encode("utf-8")
            self._heard.append(json.loads(message, parse_constant=_refuse))
        self._ordered += self.protocol.commands_received()


class Conversation(Dialogue):
    """A client of the realtime protocol."""

    def __init__(self, model: str | None = VENDOR_MODEL, *, greeted: bool = True, **changes: Any) -> None:
        offered = capabilities(**changes)
        super().__init__("dashscope_realtime", {} if model is None else {"model": model}, lambda _: offered)
        if greeted:
            self.hears("session.created")

    def says(self, type: str, **fields: Any) -> None:
        """The client sends an event."""
        self.says_raw(json.dumps({"type": type} | fields))

    def updates(self, **session: Any) -> None:
        """The client sends `session.update`."""
        self.says("session.update", session=session)

    def hears(self, type: str, **fields: Any) -> dict[str, Any]:
        """The client's next message has this type and at least these fields; return it whole."""
        message = self.hears_next()
        assert message["type"] == type, message
        assert {name: message.get(name) for name in fields} == fields
        return message

    def hears_error(self, code: str, *, param: str | None = None, event_id: str | None = None) -> dict[str, Any]:
        """The client's next message is an error it can mend; return its `error` object."""
        error = self.hears("error")["error"]
        found = {name: error[name] for name in ("type", "code", "param", "event_id")}
        assert found == {"type": "invalid_request_error", "code": code, "param": param, "event_id": event_id}
        return error

    def hears_session(self) -> dict[str, Any]:
        """The client's next message is `session.updated`, and the session is told; return the session object."""
        self.orders_config()
        return self.hears("session.updated")["session"]

    def orders_config(self) -> None:
        """The next command configures the session as the protocol says it is configured."""
        self.orders(Configure(self.protocol.config))

    def is_alive(self) -> None:
        """The session can still be used."""
        assert self.close is None
        self.updates()
        self.hears_session()
        self.is_silent()


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
