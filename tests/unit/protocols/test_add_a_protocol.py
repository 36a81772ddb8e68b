"""The tutorial's file runs as it stands in the page."""

import re
import sys
from pathlib import Path

import pytest

from qwen3_asr_server import protocols
from qwen3_asr_server.domain import SessionConfig
from qwen3_asr_server.errors import InvalidAudio, Overloaded
from qwen3_asr_server.messages import AppendBytes, Closing, Final, Finish, Finished, Rejected, SpeechStarted
from qwen3_asr_server.protocols import load_protocol, protocol_names
from qwen3_asr_server.protocols._base import Capabilities, Close, Handshake, ServerProtocol, SessionRequest

PAGE = Path(__file__).parents[3] / "docs" / "add-a-protocol.md"


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerProtocol:
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code is not None
    (tmp_path / "plain_text.py").write_text(code[1], encoding="utf-8")
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "qwen3_asr_server.protocols.plain_text", raising=False)
    assert "plain_text" in protocol_names()
    offered = Capabilities("tiny", frozenset({"en"}), "en")
    return load_protocol("plain_text")(Handshake(query={}), lambda _: offered, str)


def test_it_begins_with_a_session(protocol: ServerProtocol) -> None:
    assert protocol.session_to_open() == SessionRequest(None, SessionConfig())
    assert protocol.session_to_open() is None


def test_client_to_session(protocol: ServerProtocol) -> None:
    for message in (b"\x01\x02", "end"):
        protocol.receive(protocol.parse(message))
    assert protocol.commands_received() == [AppendBytes(b"\x01\x02"), Finish()]
    assert protocol.commands_received() == []
    protocol.receive(protocol.parse("what?"))
    assert protocol.messages_to_send() == ["error: send pcm, or the word end"]


def test_session_to_client(protocol: ServerProtocol) -> None:
    for event in (SpeechStarted(0, 0), Final(0, "hello", "en"), Final(1, "", "en"), Rejected(InvalidAudio("bad"))):
        protocol.send_event(event)
    assert protocol.messages_to_send() == ["hello", "error: bad"]
    assert protocol.close_expected is None
    protocol.send_event(Finished("hello"))
    assert protocol.close_expected == Close(1000, "finished")


def test_the_server_ends_it(protocol: ServerProtocol) -> None:
    protocol.send_event(Closing(Overloaded("full")))
    assert protocol.messages_to_send() == ["error: full"]
    assert protocol.close_expected == Close(1011, "closed by the server")
