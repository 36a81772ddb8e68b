"""Whole conversations, message by message, as `tests/data/golden/*.jsonl` has them.

A line is one of
    {"connect": {"model": …}}           the handshake's query; first line
    {"client": {…}}                     what the client sends (frames of real clients)
    {"session": {"SpeechStarted": {…}}} what the session reports
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
        "vendor_sample_manual",
        "vendor_sample_vad",
    }


def replay(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the conversation that comes of the inputs among `lines`, outputs at their places."""
    protocol: ServerProtocol | None = None
    for line in lines:
        match line:
            case {"connect": query}:
                protocol = load_protocol("dashscope_realtime")(
                    Handshake(query), lambda _: capabilities(), CountingIds()
                )
            case {"client": event}:
                assert protocol is not None
                protocol.receive(protocol.parse(json.dumps(event)))
            case {"session": event}:
                assert protocol is not None
                protocol.send_event(event_of(event))
            case _:
                continue
        yield line
        for command in protocol.commands_received():
            yield {"command": {type(command).__name__: json.loads(json.dumps(asdict(command), default=plain))}}
        for message in protocol.messages_to_send():
            yield {"server": json.loads(message)}
    assert protocol is not None
    if protocol.close_expected is not None:
        yield {"close": asdict(protocol.close_expected)}


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


def plain(value: object) -> object:
    """Return a command's value as JSON has it: audio as its length, enumerations by name."""
    return len(value) if isinstance(value, bytes) else value.value  # type: ignore[attr-defined]
