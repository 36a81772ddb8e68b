"""How a task of the run-task protocol fails, and what its error says."""

import json

import pytest

from qwen3_asr_server import errors
from qwen3_asr_server.errors import (
    AsrServerError,
    EngineCrashed,
    EngineError,
    EngineTimeout,
    IdleTimeout,
    InternalError,
    InvalidAudio,
    Overloaded,
    ShuttingDown,
)
from qwen3_asr_server.messages import (
    Closing,
    Event,
    Final,
    Finish,
    Finished,
    Rejected,
    SpeechStarted,
    SpeechStopped,
    UtteranceFailed,
)
from qwen3_asr_server.protocols._base import Close
from qwen3_asr_server.protocols._dashscope_errors import WIRE_ERRORS, wire_error
from qwen3_asr_server.protocols._dashscope_instructions import MAX_TASK_ID_CHARS
from qwen3_asr_server.protocols._json import LARGE_CHARS
from support.task_conversation import (
    AUDIO,
    NEVER_NAMED,
    OTHER,
    TASK,
    TaskConversation,
    partial,
    run_payload,
    running,
    sentence,
)

HEARD: list[Event] = [SpeechStarted(1, 0), SpeechStopped(1, 8000), SpeechStarted(2, 32_000)]
"""What a session has told when something goes wrong in it: one sentence waits for its text, another has begun."""


class TestFailure:
    @pytest.mark.parametrize(
        ("error", "code", "message", "close_code"),
        [
            (InvalidAudio("The MP3 audio is damaged."), "InvalidParameter", "The MP3 audio is damaged.", 1008),
            (InvalidAudio("Unknown.", param="sample_rate"), "InvalidParameter", "sample_rate: Unknown.", 1008),
            (Overloaded("Too much audio."), "Throttling", "Too much audio.", 1013),
        ],
    )
    def test_after_a_rejection_what_was_heard_is_told_first(
        self, error: AsrServerError, code: str, message: str, close_code: int
    ) -> None:
        talk = running()
        talk.tells(*HEARD, Rejected(error))
        self.takes_no_more(talk)
        talk.tells(partial(2, "tw"), Final(1, "One.", "en"))
        talk.hears_sentence(text="One.", sentence_end=True)
        talk.hears_sentence(text="tw", sentence_end=False)
        talk.tells(SpeechStopped(2, 40_000), Final(2, "Two.", "en"))
        talk.hears_sentence(text="Two.", sentence_end=True)
        talk.tells(Finished("One. Two."))
        talk.hears_failure(code, message)
        assert talk.close == Close(close_code, code)
        talk.is_silent()

    @pytest.mark.parametrize("error", [EngineError("No text."), EngineTimeout("Too slow."), EngineCrashed("Gone.")])
    def test_after_a_sentence_without_text_the_others_are_told_first(self, error: EngineError) -> None:
        talk = running()
        talk.tells(*HEARD, partial(2, "tw"), UtteranceFailed(1, error))
        talk.hears_sentence(sentence_id=1, text="tw")
        self.takes_no_more(talk)
        talk.tells(SpeechStopped(2, 40_000), Final(2, "Two.", "en"))
        talk.hears_sentence(sentence_id=1, text="Two.", sentence_end=True)
        talk.tells(Finished("Two."))
        talk.hears_failure("InternalError", error.message)
        assert talk.close == Close(1011, "InternalError")
        talk.is_silent()

    def takes_no_more(self, talk: TaskConversation) -> None:
        talk.orders(Finish())
        talk.says_raw(AUDIO)
        talk.continues([])
        talk.says("finish-task")
        talk.is_silent()
        assert talk.close is None

    def test_the_first_failure_is_told(self) -> None:
        talk = running(max_append_bytes=100)
        talk.tells(SpeechStarted(1, 0), Rejected(InvalidAudio("first")))
        talk.tells(UtteranceFailed(1, EngineError("second")), Rejected(InvalidAudio("third")))
        talk.says_raw("{")
        talk.orders(Finish())
        talk.tells(Finished(""))
        talk.hears_failure("InvalidParameter", "first")
        talk.is_silent()

    def test_after_finish_task_it_still_fails(self) -> None:
        talk = running()
        talk.finishes()
        talk.tells(SpeechStarted(1, 0), UtteranceFailed(1, EngineCrashed("gone")), Finished(""))
        talk.hears_failure("InternalError", "gone")
        assert talk.close == Close(1011, "InternalError")
        talk.is_silent()

    def test_a_session_that_ends_unasked_is_told_as_what_it_is(self) -> None:
        talk = running()
        talk.tells(*sentence(1, "one"), Finished("one"))
        talk.hears_sentence(text="one")
        talk.hears_failure("ServiceUnavailable", "The server is shutting down.")
        assert talk.close == Close(1001, "ServiceUnavailable")
        talk.is_silent()

    @pytest.mark.parametrize(
        ("error", "code", "close_code"),
        [
            (Overloaded("full"), "Throttling", 1013),
            (ShuttingDown("bye"), "ServiceUnavailable", 1001),
            (IdleTimeout("Nothing came for 60 s."), "CLIENT_ERROR", 1008),
            (EngineCrashed("gone"), "InternalError", 1011),
            (InternalError("Internal error 7."), "InternalError", 1011),
        ],
    )
    @pytest.mark.parametrize("when", ["never", "running", "failing", "finishing", "after"])
    def test_the_server_ends_the_connection(self, error: AsrServerError, code: str, close_code: int, when: str) -> None:
        talk = TaskConversation() if when == "never" else running()
        if when == "failing":
            talk.tells(Rejected(InvalidAudio("bad")))
            talk.orders(Finish())
        if when in ("finishing", "after"):
            talk.finishes()
        if when == "after":
            talk.is_over()
        talk.tells(Closing(error))
        talk.hears_failure(code, error.message, NEVER_NAMED if when == "never" else TASK)
        assert talk.close == Close(close_code, code)
        talk.is_silent()


class TestSecondTask:
    def test_it_fails_and_the_first_goes_on(self) -> None:
        talk = running()
        talk.runs(OTHER)
        talk.hears_failure("InvalidParameter", "Another task runs on this connection: finish it first.", OTHER)
        talk.is_silent()
        assert talk.close is None
        talk.speaks()
        talk.finishes()
        talk.runs(OTHER)
        talk.hears_failure("InvalidParameter", task_id=OTHER)
        talk.is_over()
        talk.starts(OTHER)

    def test_of_the_same_name_it_fails_the_first(self) -> None:
        talk = running()
        talk.runs()
        talk.orders(Finish())
        talk.tells(Finished(""))
        talk.hears_failure("InvalidParameter", "Another task runs on this connection: finish it first.")
        talk.is_silent()

    @pytest.mark.parametrize("action", ["continue-task", "finish-task"])
    def test_what_is_sent_for_it_without_waiting_is_ignored(self, action: str) -> None:
        talk = running()
        talk.runs(OTHER)
        talk.says(action, task_id=OTHER)
        talk.hears_failure("InvalidParameter", task_id=OTHER)
        talk.is_silent()
        talk.finishes()

    @pytest.mark.parametrize("action", ["continue-task", "finish-task"])
    def test_an_instruction_for_another_task_fails_that_one(self, action: str) -> None:
        talk = running()
        talk.says(action, task_id=OTHER)
        message = "header.task_id: No such task runs on this connection."
        talk.hears_failure("InvalidParameter", message, OTHER)
        talk.is_silent()
        talk.speaks()
        talk.finishes()
        talk.is_over()

    @pytest.mark.parametrize("limit", [1, 3])
    def test_too_many_of_them_end_the_first(self, limit: int) -> None:
        """After what it has heard is told; those beyond the limit are not answered."""
        talk = running(max_errors=limit)
        for number in range(limit):
            talk.runs(f"{OTHER}-{number}")
            talk.hears_failure("InvalidParameter", task_id=f"{OTHER}-{number}")
            talk.is_silent()
        for _ in range(3):
            talk.runs(OTHER)
        talk.orders(Finish())
        talk.tells(*sentence(1, "one"), Finished("one"))
        talk.hears_sentence(sentence_id=1, text="one", sentence_end=True)
        talk.hears_failure("InvalidParameter", "There were too many errors on this connection.")
        assert talk.close is not None
        talk.is_silent()


def message(header: object, payload: object = None) -> str:
    return json.dumps({"header": header, "payload": payload})


WRONG: list[tuple[str, str, str | None]] = [
    ("", "The message is not valid JSON.", None),
    ("{", "The message is not valid JSON.", None),
    ("[]", "The message is not a JSON object.", None),
    ("NaN", "The message is not valid JSON.", None),
    ('{"a": 1e999}', "A number in the message is out of range.", None),
    ("[" * 100_000, "The message is nested too deeply.", None),
    ('{"a":' * 40 + "1" + "}" * 40, "The message is nested too deeply.", None),
    ("{}", "header.task_id: A task is named by a string of at most 256 characters.", None),
    (message([]), "header.task_id: A task is named by a string of at most 256 characters.", None),
    (message("run-task"), "header: Invalid value: 'run-task'. An object is expected.", None),
    (message({"action": "run-task"}), "header.task_id: A task is named by a string of at most 256 characters.", None),
    (
        message({"action": "run-task", "task_id": ""}),
        "header.task_id: A task is named by a string of at most 256 characters.",
        None,
    ),
    (
        message({"action": "run-task", "task_id": "x" * (MAX_TASK_ID_CHARS + 1)}),
        "header.task_id: A task is named by a string of at most 256 characters.",
        None,
    ),
    (
        message({"action": "run-task", "task_id": 7}),
        "header.task_id: Invalid value: 7. A string is expected.",
        None,
    ),
    (message({"task_id": TASK}), "header.action: There is no action.", TASK),
    (message({"task_id": TASK, "action": ""}), "header.action: There is no action.", TASK),
    (message({"task_id": TASK, "action": 7}), "header.action: Invalid value: 7. A string is expected.", TASK),
    (message({"task_id": TASK, "action": "stop"}), "header.action: Unknown action: 'stop'.", TASK),
    (
        message({"task_id": TASK, "action": "run-task"}, 7),
        "payload: Invalid value: 7. An object is expected.",
        TASK,
    ),
]


class TestWrongMessages:
    @pytest.mark.parametrize(("text", "said", "task_id"), WRONG, ids=lambda value: str(value)[:40])
    def test_before_any_task_they_end_the_connection(self, text: str, said: str, task_id: str | None) -> None:
        talk = TaskConversation()
        talk.says_raw(text)
        talk.hears_failure("InvalidParameter", said, task_id or NEVER_NAMED)
        assert talk.close == Close(1008, "InvalidParameter")
        talk.is_silent()

    @pytest.mark.parametrize(("text", "said", "task_id"), WRONG, ids=lambda value: str(value)[:40])
    def test_they_end_the_task_that_runs(self, text: str, said: str, task_id: str | None) -> None:
        talk = running()
        talk.says_raw(text)
        talk.orders(Finish())
        talk.is_silent()
        talk.tells(*sentence(1, "one"), Finished(""))
        talk.hears_sentence(text="one")
        talk.hears_failure("InvalidParameter", said)
        assert talk.close == Close(1008, "InvalidParameter")
        talk.is_silent()

    @pytest.mark.parametrize(("text", "said", "task_id"), WRONG, ids=lambda value: str(value)[:40])
    def test_after_a_task_they_end_the_connection(self, text: str, said: str, task_id: str | None) -> None:
        talk = running()
        talk.finishes()
        talk.is_over()
        talk.says_raw(text)
        talk.hears_failure("InvalidParameter", said)
        assert talk.close == Close(1008, "InvalidParameter")

    @pytest.mark.parametrize("action", ["continue-task", "finish-task"])
    def test_an_instruction_before_any_task(self, action: str) -> None:
        talk = TaskConversation()
        talk.says(action)
        talk.hears_failure("InvalidParameter", "header.task_id: No such task runs on this connection.")
        assert talk.close == Close(1008, "InvalidParameter")

    @pytest.mark.parametrize("extra", [0, 1])
    def test_a_message_that_is_too_large(self, extra: int) -> None:
        talk = TaskConversation()
        talk.says_raw(json.dumps({"a": ""}).replace('""', f'"{"x" * (LARGE_CHARS + extra - 9)}"'))
        limit = f"A text message must be shorter than {LARGE_CHARS} characters."
        talk.hears_failure("InvalidParameter", limit, NEVER_NAMED)
        assert talk.close == Close(1009, "InvalidParameter")

    def test_a_message_that_is_just_small_enough(self) -> None:
        talk = TaskConversation()
        text = json.dumps({"header": {"task_id": TASK, "action": "run-task"}, "payload": run_payload()})
        talk.says_raw(text + " " * (LARGE_CHARS - 1 - len(text)))
        talk.hears("task-started")

    @pytest.mark.parametrize("task_id", [TASK, OTHER])
    def test_a_refused_task_never_begins(self, task_id: str) -> None:
        talk = running()
        talk.finishes()
        talk.is_over()
        talk.runs(task_id, model="whisper-1")
        talk.hears_failure("Model.NotExist", task_id=task_id)
        assert talk.close == Close(1008, "Model.NotExist")
        talk.is_silent()

    def test_nothing_follows_the_end_of_the_connection(self) -> None:
        talk = TaskConversation()
        talk.says_raw("{")
        talk.hears_failure("InvalidParameter", task_id=NEVER_NAMED)
        close = talk.close
        talk.runs()
        talk.says_raw(AUDIO)
        talk.says_raw("{")
        talk.tells(Closing(Overloaded("full")), *sentence(1, "one"), Finished(""))
        talk.is_silent()
        assert talk.close == close


class TestCodes:
    ALL = sorted(
        {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, AsrServerError)}
        - {AsrServerError},
        key=lambda error: error.__name__,
    )

    @pytest.mark.parametrize("error", ALL)
    def test_every_error_has_a_code_and_closes_the_connection(self, error: type[AsrServerError]) -> None:
        wire = wire_error(error("What happened."))
        talk = running()
        talk.tells(Rejected(error("What happened.")), Finished(""))
        talk.orders(Finish())
        code = wire.task_code or wire.code
        talk.hears_failure(code, "What happened.")
        assert talk.close == Close(wire.close_code, code)
        talk.is_silent()

    def test_the_table_has_all_of_them(self) -> None:
        assert {error for error in WIRE_ERRORS if error is not AsrServerError} <= set(self.ALL)
        assert len(self.ALL) >= 20
