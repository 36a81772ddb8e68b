"""Garbage from a client: never an exception, exactly one answer to each bad message, and the session lives."""

import base64
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3_asr_server.messages import Clear, Commit, Configure, Finish
from qwen3_asr_server.protocols import load_protocol
from qwen3_asr_server.protocols._dashscope_frames import Malformed
from support.conversation import Conversation

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Tests share their cores; how long an example takes says nothing here."""

TEXT = st.text(st.characters(codec=None), max_size=40)
"""Any text, halves of surrogate pairs included: JSON can carry them."""
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, -0.0, 0.2, 16000, 800])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=20,
)
TYPES = st.sampled_from(
    [
        "session.update",
        "session.finish",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "response.create",
    ]
)


def likely(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw from `values` more often than from all of JSON."""
    return st.one_of(values, values, values, JSON)


DETECTION = st.fixed_dictionaries(
    {},
    optional={
        "type": likely(st.just("server_vad")),
        "threshold": likely(st.floats(-1, 1)),
        "silence_duration_ms": likely(st.integers(200, 6000)),
        "prefix_padding_ms": likely(st.integers(0, 2000)),
        "extra": JSON,
    },
)
TRANSCRIPTION = st.fixed_dictionaries(
    {},
    optional={
        "language": likely(st.sampled_from(["en", "zh", "yue", "de", None])),
        "corpus": likely(st.fixed_dictionaries({}, optional={"text": likely(TEXT)})),
        "corpus_text": likely(TEXT),
        "model": JSON,
    },
)
SESSION = st.fixed_dictionaries(
    {},
    optional={
        "modalities": likely(st.just(["text"])),
        "input_audio_format": likely(st.sampled_from(["pcm", "pcm16", "wav", "opus", "mp3"])),
        "sample_rate": likely(st.sampled_from([8000, 16000, 44100])),
        "audio": likely(st.just({"input": {"format": {"type": "opus", "sample_rate": 48000}}})),
        "input_audio_transcription": likely(TRANSCRIPTION | st.none()),
        "turn_detection": likely(DETECTION | st.none()),
        "words": likely(st.booleans()),
        "voice": JSON,
        "id": JSON,
        "kwarg": JSON,
    },
)
EVENTS = st.fixed_dictionaries(
    {"type": likely(TYPES)},
    optional={
        "event_id": likely(TEXT),
        "session": likely(SESSION),
        "audio": likely(st.binary(max_size=64).map(lambda audio: base64.b64encode(audio).decode())),
    },
)
MESSAGES = st.one_of(
    EVENTS.map(json.dumps),
    EVENTS.map(lambda event: json.dumps(event, ensure_ascii=False)),
    JSON.map(json.dumps),
    TEXT,
    st.binary(max_size=64),
)


@unhurried
@given(MESSAGES)
def test_parse_never_raises_and_knows_only_events_with_a_type(message: str | bytes) -> None:
    parsed = load_protocol("dashscope_realtime").parse(message)
    if isinstance(message, bytes):
        assert isinstance(parsed, Malformed)


@unhurried
@given(st.lists(MESSAGES, max_size=8))
def test_each_message_has_the_one_effect_it_may_have(messages: list[str | bytes]) -> None:
    talk = Conversation()
    for message in messages:
        talk.says_raw(message)
        heard = [json.loads(sent) for sent in talk.protocol.messages_to_send()]
        commands = talk.protocol.commands_received()
        assert len(heard) <= 1
        assert len(commands) <= 1
        match [each["type"] for each in heard]:
            case ["error"]:
                assert heard[0]["error"]["type"] == "invalid_request_error"
                assert isinstance(heard[0]["error"]["code"], str)
                assert commands == []
            case ["session.updated"]:
                assert commands == [Configure(talk.protocol.config)]
            case _:
                assert heard == []
        if commands == [Finish()]:
            return
    assert talk.close is None
    talk.is_alive()


@unhurried
@given(SESSION, SESSION)
def test_an_update_is_obeyed_whole_or_not_at_all(first: dict[str, Any], second: dict[str, Any]) -> None:
    talk = Conversation()
    before = talk.protocol.config
    for session in (first, second):
        talk.updates(**session)
        message = talk.hears_next()
        if message["type"] == "error":
            param = message["error"]["param"]
            assert param is None or param.startswith("session")
            assert talk.protocol.config == before
        else:
            talk.orders_config()
            before = talk.protocol.config
        talk.is_silent()


@unhurried
@given(SESSION)
def test_an_accepted_update_sent_again_changes_nothing(session: dict[str, Any]) -> None:
    talk = Conversation()
    talk.updates(**session)
    first, config = talk.hears_next(), talk.protocol.config
    talk.updates(**session)
    second = talk.hears_next()
    assert first | {"event_id": ""} == second | {"event_id": ""}
    assert talk.protocol.config == config


@unhurried
@given(SESSION)
def test_the_config_stays_within_its_limits(session: dict[str, Any]) -> None:
    talk = Conversation()
    talk.updates(**session)
    config = talk.protocol.config
    assert config.audio.sample_rate in {8000, 16000, 24000, 48000}
    assert config.language in {None, "en", "zh", "yue"}
    config.context.encode("utf-8")
    detection = config.turn_detection
    if detection is not None:
        assert 0.05 <= detection.threshold <= 0.95
        assert 200 <= detection.silence_ms <= 6000
        assert 0 <= detection.prefix_padding_ms <= 2000


@unhurried
@given(st.integers(1, 5), st.lists(st.booleans(), max_size=30))
def test_only_a_row_of_errors_ends_the_connection(limit: int, pattern: list[bool]) -> None:
    talk = Conversation(max_errors=limit)
    row = 0
    for good in pattern:
        assert (talk.close is not None) == (row >= limit)
        if talk.close is not None:
            break
        talk.says("input_audio_buffer.commit" if good else "nonsense")
        row = 0 if good else row + 1


@unhurried
@given(st.sampled_from([Commit(), Clear()]), TEXT)
def test_event_ids_of_any_shape_travel_with_their_command(command: Commit | Clear, event_id: str) -> None:
    talk = Conversation()
    talk.says(f"input_audio_buffer.{type(command).__name__.lower()}", event_id=event_id)
    talk.orders(type(command)(event_id))
