"""Whole conversations, message by message, as `tests/data/golden/*.jsonl` has them.

A line is one of
    {"connect": {"model": …}}           the handshake's query; first line. With "protocol" it is of another protocol
                                        than the realtime one
    {"client": {…}}                     what the client sends (frames of real clients)
    {"audio": 3200}                     the same, so many bytes of audio in a binary message
    {"session": {"SpeechStarted": {…}}} what the session reports
    {"open": {"model": …, "config": …}} the session that must be opened next
    {"command": {"Commit": {…}}}        what the session must be told next
    {"server": {…}}                     what the client must be sent next
    {"close": {…}}                      how the connection must end; last line, or absent
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from qwen3_asr_server import errors, messages
from qwen3_asr_server.domain import Word
from qwen3_asr_server.protocols import load_protocol
from qwen3_asr_server.protocols._base import Handshake, ServerProtocol
from support.conversation import CountingIds, capabilities

GOLDEN = sorted((Path(__file__).parents[1] / "data" / "golden").glob("*.jsonl"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_conversation(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert list(replay(lines)) == lines


def test_the_clients_of_the_specification_are_there() -> None:
    assert {path.stem for path in GOLDEN} == {
        "java_sdk",
        "livekit",
        "openless",
        "qwen_code",
        "qwen_code_without_audio",
        "sdk_audio_config",
        "sdk_manual_opus",
        "sdk_no_parameters",
        "sdk_other_methods",
        "sdk_vad",
        "task_failed",
        "task_go_sample",
        "task_node_sample",
        "task_php_sample",
        "task_sdk",
        "task_sdk_1_25_24",
        "task_sdk_v2_two_tasks",
        "vendor_sample_manual",
        "vendor_sample_vad",
    }


def replay(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the conversation that comes of the inputs among `lines`, outputs at their places."""
    protocol = protocol_of(lines[0])
    for line in lines:
        match line:
            case {"connect": _}:
                pass
            case {"client": message}:
                protocol.receive(protocol.parse(json.dumps(message)))
            case {"audio": length}:
                protocol.receive(protocol.parse(bytes(length)))
            case {"session": event}:
                protocol.send_event(event_of(event))
            case _:
                continue
        yield line
        if (request := protocol.session_to_open()) is not None:
            yield {"open": json_of(request)}
        for command in protocol.commands_received():
            yield {"command": {type(command).__name__: json_of(command)}}
        for sent in protocol.messages_to_send():
            yield {"server": json.loads(sent)}
    if protocol.close_expected is not None:
        yield {"close": asdict(protocol.close_expected)}


def protocol_of(connect: dict[str, Any]) -> ServerProtocol:
    """Return the protocol of a first line. A session that it opens on connect is not in the file."""
    kind = load_protocol(connect.get("protocol", "dashscope_realtime"))
    protocol = kind(Handshake(connect["connect"]), lambda _: capabilities(), CountingIds())
    protocol.session_to_open()
    return protocol


def event_of(line: dict[str, Any]) -> messages.Event:
    """Build a session event from `{"Final": {"item": 1, …}}`; an error is `["EmptyCommit", "message"]`."""
    ((name, values),) = line.items()
    kind = getattr(messages, name)
    assert set(values) <= {field.name for field in fields(kind)}
    if "error" in values:
        error, message = values["error"]
        values = values | {"error": getattr(errors, error)(message)}
    if values.get("words"):
        values = values | {"words": [Word(**word) for word in values["words"]]}
    event: messages.Event = kind(**values)
    return event


def json_of(value: Any) -> Any:
    """Return a command or a request as JSON has it: audio as its length, enumerations by name."""
    return json.loads(json.dumps(asdict(value), default=lambda it: len(it) if isinstance(it, bytes) else it.value))
