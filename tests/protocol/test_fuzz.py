"""Garbage from a client: never an exception, exactly one answer to each bad message, and the session lives.

In the run-task protocol the session does not live on: there every answer to a bad message ends something, once.
"""

import base64
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3_asr_server.messages import AppendBytes, Clear, Command, Commit, Configure, Finish, UtteranceFailed
from qwen3_asr_server.protocols import load_protocol
from qwen3_asr_server.protocols._dashscope_frames import Malformed
from support.conversation import Conversation
from support.task_conversation import TaskConversation, run_payload, running
from support.utterances import Move, Utterances

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


# The run-task protocol

CONTENT = st.lists(st.fixed_dictionaries({}, optional={"type": JSON, "text": likely(TEXT)}), max_size=3)
CONTEXT = st.fixed_dictionaries(
    {}, optional={"context": likely(st.lists(st.fixed_dictionaries({"content": likely(CONTENT | TEXT)}), max_size=3))}
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "format": likely(st.sampled_from(["pcm", "wav", "opus", "mp3", ""])),
        "sample_rate": likely(st.integers(8000, 48000)),
        "language_hints": likely(st.lists(st.sampled_from(["zh", "en", "de", "auto", ""]), max_size=3)),
        "max_sentence_silence": likely(st.integers(200, 6000)),
        "speech_noise_threshold": likely(st.floats(-1, 1)),
        "vocabulary": likely(st.dictionaries(TEXT, st.integers(-5, 5), max_size=3) | st.lists(TEXT, max_size=3)),
        "custom_vocabulary_word": JSON,
        "corpus": likely(st.fixed_dictionaries({"text": TEXT})),
        "special_word_filter": likely(
            st.fixed_dictionaries({"filter_with_signed": st.fixed_dictionaries({"word_list": st.lists(TEXT)})})
        ),
        "unknown": JSON,
    },
)
PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "model": likely(st.sampled_from(["tiny", "fun-asr-realtime", "whisper-1"])),
        "parameters": likely(PARAMETERS),
        "input": likely(CONTEXT),
        "task_group": likely(st.just("audio")),
        "task": likely(st.sampled_from(["asr", "tts"])),
        "function": likely(st.just("recognition")),
        "resources": JSON,
    },
)
ACTIONS = st.sampled_from(["run-task", "continue-task", "finish-task"])
TASKS = st.sampled_from(["one", "two"])


def instructions(
    action: st.SearchStrategy[Any], task_id: st.SearchStrategy[Any], payload: st.SearchStrategy[Any]
) -> st.SearchStrategy[str]:
    header = st.fixed_dictionaries({"action": action, "task_id": task_id})
    return st.fixed_dictionaries({"header": header, "payload": payload}).map(json.dumps)


TASK_MESSAGES = st.one_of(
    instructions(ACTIONS, TASKS, st.just(run_payload())),
    instructions(ACTIONS, TASKS, PAYLOADS),
    instructions(likely(ACTIONS), likely(TASKS), likely(PAYLOADS)),
    st.just(bytes(64)),
    MESSAGES,
)
MOVES = st.builds(
    Move,
    st.sampled_from(["start", "partial", "stop", "final", "fail", "reject"]),
    st.integers(0, 32_000),
    st.sampled_from(["", "um", "one", "one two, three.", "um, 四五。"]) | TEXT,
)
SPOKEN = MOVES.filter(lambda move: move.kind not in ("fail", "reject"))


@unhurried
@given(TASK_MESSAGES)
def test_parse_of_an_instruction_never_raises(message: str | bytes) -> None:
    parsed = load_protocol("dashscope_inference").parse(message)
    assert isinstance(message, str) or parsed == message


class TaskDriver:
    """Obeys a run-task protocol as its driver would, and watches what it says and orders."""

    def __init__(self, max_errors: int) -> None:
        self.talk = TaskConversation(max_errors=max_errors)
        self.task: str | None = None
        self.session: Utterances | None = None
        self.finishing = False

    def does(self, step: str | bytes | Move | None) -> None:
        """Let the client send a message, or the session report something; with None it ends."""
        closed = self.talk.close is not None
        if isinstance(step, str | bytes):
            self.talk.says_raw(step)
        elif self.session is not None:
            self.talk.tells(*(self.session.after(step) if step else self.session.finish()))
        protocol = self.talk.protocol
        if protocol.session_to_open() is not None:
            assert self.session is None
            self.session, self.finishing = Utterances(), False
        commands, sent = protocol.commands_received(), [json.loads(each) for each in protocol.messages_to_send()]
        failures = [each["header"]["error_code"] for each in sent if each["header"]["event"] == "task-failed"]
        assert protocol.errors_told() == failures
        assert not (closed and (commands or sent))
        for command in commands:
            self.is_told(command)
        for message in sent:
            self.hears(**message["header"])
        if step is None:
            assert self.task is None or closed
            self.session = None

    def is_told(self, command: Command) -> None:
        """The session gets a command."""
        assert self.session is not None
        assert not self.finishing
        assert isinstance(command, AppendBytes | Configure | Finish)
        self.finishing = command == Finish()

    def hears(self, event: str, task_id: str, **_: Any) -> None:
        """The client hears of a task."""
        assert isinstance(task_id, str)
        assert task_id
        match event:
            case "task-started":
                assert self.task is None
                assert self.session is not None
                self.task = task_id
            case "result-generated":
                assert task_id == self.task
            case "task-finished":
                assert task_id == self.task
                assert self.finishing
                self.task = None
            case "task-failed":
                if task_id == self.task:
                    assert self.talk.close is not None
                    self.task = None
                else:
                    assert self.task is not None or self.talk.close is not None
            case _:
                raise AssertionError(event)


@unhurried
@given(st.integers(1, 5), st.booleans(), st.lists(TASK_MESSAGES | MOVES | st.none(), max_size=20))
def test_each_task_begins_and_ends_once(max_errors: int, runs: bool, steps: list[str | bytes | Move | None]) -> None:
    driver = TaskDriver(max_errors)
    if runs:
        driver.does(json.dumps({"header": {"action": "run-task", "task_id": "one"}, "payload": run_payload()}))
        assert driver.task == "one"
    for step in [*steps, None]:
        driver.does(step)


@unhurried
@given(PARAMETERS, CONTEXT, CONTEXT)
def test_the_config_of_a_task_stays_within_its_limits(
    parameters: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
) -> None:
    talk = TaskConversation()
    talk.runs(parameters=parameters, input=first)
    if (request := talk.protocol.session_to_open()) is None:
        assert talk.close is not None
        return
    talk.says("continue-task", {"input": second})
    (*changed,) = talk.protocol.commands_received()
    configs = [request.config, *(command.config for command in changed if isinstance(command, Configure))]
    for config in configs:
        assert 8000 <= config.audio.sample_rate <= 48000
        assert config.language in {None, "en", "zh", "yue"}
        config.context.encode("utf-8")
        detection = config.turn_detection
        assert detection is not None
        assert 0.05 <= detection.threshold <= 0.95
        assert 200 <= detection.silence_ms <= 6000
        assert config.words


@unhurried
@given(st.lists(st.one_of(SPOKEN, SPOKEN, MOVES), max_size=40), st.booleans())
def test_sentences_are_told_one_after_the_other(moves: list[Move], filtered: bool) -> None:
    words = {"filter_with_empty": {"word_list": ["um"]}} if filtered else {}
    talk = running(parameters={"special_word_filter": words})
    session = Utterances()
    events = [event for move in moves for event in session.after(move)] + list(session.finish())
    talk.says("finish-task")
    talk.tells(*events)
    *results, end = [json.loads(sent) for sent in talk.protocol.messages_to_send()]
    told = [result["payload"] for result in results]
    failed = [event for event in events if isinstance(event, UtteranceFailed)]
    number, ended, cut_short = 0, True, 0
    for sentence, usage in ((payload["output"]["sentence"], payload["usage"]) for payload in told):
        begins = sentence["sentence_id"] != number
        assert sentence["sentence_begin"] == begins
        assert begins or not ended
        cut_short += begins and not ended
        number += begins
        assert sentence["sentence_id"] == number
        ended = sentence["sentence_end"]
        if ended:
            assert sentence["end_time"] >= sentence["begin_time"]
            assert usage == {"duration": -(-sentence["end_time"] // 1000)}
        else:
            assert (sentence["end_time"], sentence["words"], usage) == (None, [], None)
            assert sentence["text"]
    assert cut_short + (not ended) <= len(failed)
    fails = any(move.kind == "reject" for move in moves) or bool(failed)
    assert end["header"]["event"] == ("task-failed" if fails else "task-finished")
