"""The DashScope run-task protocol, as `wss://…/api-ws/v1/inference` speaks it for speech recognition.

    client:  run-task ─▶ audio, continue-task … ─▶ finish-task          ┐ again, on the same connection
    server:  task-started ─▶ result-generated … ─▶ task-finished        ┘ or task-failed, and the end of it

A sans-IO machine (see `_base` for the driver's contract). A task is a session; its utterances are sentences, told one
after the other as snapshots of the whole sentence. The protocol has one way to say that something went wrong,
`task-failed`, which ends the task. So what a task has heard until then is told first: the session is asked to
finish, and the failure takes the place of `task-finished`.

What clients depend on, besides the names: an interim result has `end_time: null`, and both `end_time` and `usage` are
always there; `output` of `task-finished` is an empty object; `task_id` stands in every header; and nothing comes before
`task-started`. `docs/api/dashscope_inference.md` lists every action, field and event with the test that shows it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, assert_never

from qwen3_asr_server import messages
from qwen3_asr_server.errors import AsrServerError, ClientError, InvalidAudio, InvalidEvent, ShuttingDown, located
from qwen3_asr_server.messages import Configure, Event
from qwen3_asr_server.protocols._base import Close, Handshake, IdFactory, Offers, SessionRequest
from qwen3_asr_server.protocols._dashscope_errors import wire_error
from qwen3_asr_server.protocols._dashscope_instructions import Instruction, Malformed, Parsed, object_in, parse
from qwen3_asr_server.protocols._dashscope_sentences import Payload, Sentences
from qwen3_asr_server.protocols._dashscope_task import TaskOptions
from qwen3_asr_server.protocols._fields import quoted
from qwen3_asr_server.protocols._json import encoded
from qwen3_asr_server.protocols._machine import Machine


@dataclass(slots=True)
class _Task:
    """What runs now."""

    id: str
    options: TaskOptions
    sentences: Sentences
    finishing: bool = False
    """No more audio is taken."""
    refused: list[str | None] = field(default_factory=list)
    """Other tasks that were named meanwhile, and told that they failed."""
    failure: AsrServerError | None = None
    """What is told in place of `task-finished`."""


class DashscopeInference(Machine):
    """One connection of the run-task protocol."""

    name: ClassVar[str] = "dashscope_inference"
    path: ClassVar[str] = "/api-ws/v1/inference"

    def __init__(self, handshake: Handshake, offers: Offers, new_id: IdFactory) -> None:
        super().__init__()
        self._offers = offers
        self._limits = offers(None)
        self._new_id = new_id
        self._task: _Task | None = None
        self._last_id = ""

    @staticmethod
    def parse(message: str | bytes) -> Parsed:
        """Decode a message without touching any state. Never raises; errors are part of the result."""
        return parse(message)

    def receive(self, parsed: Parsed) -> None:
        """Take in what `parse` returned."""
        if self._close is not None:
            return
        match parsed:
            case bytes():
                self._receive_audio(parsed)
            case Instruction():
                try:
                    self._obey(parsed)
                except ClientError as error:
                    self._refuse(error, parsed.task_id)
            case Malformed():
                self._refuse(parsed.error, parsed.task_id)
            case _:
                assert_never(parsed)

    def send_event(self, event: Event) -> None:
        """Queue what `event` looks like on the wire. Nothing follows the end of the connection."""
        if self._close is not None:
            return
        if isinstance(event, messages.Closing):
            self._end(event.error, self._last_id)
        elif self._task is not None:
            self._tell(event, self._task)

    # From the client

    def _receive_audio(self, audio: bytes) -> None:
        task = self._task
        if task is None:
            if not self._last_id:
                self._refuse(InvalidEvent("There is no task for this audio: send run-task first."), None)
        elif task.finishing or not audio:
            pass  # too late to matter, as what comes behind a task; or nothing
        elif len(audio) > self._limits.max_append_bytes:
            limit = f"One message holds at most {self._limits.max_append_bytes} bytes of audio."
            self._fail(InvalidAudio(limit), task)
        else:
            self._commands.append(messages.AppendBytes(audio))

    def _obey(self, instruction: Instruction) -> None:
        match instruction.action:
            case "run-task":
                self._run(instruction)
            case "continue-task":
                self._continue(instruction)
            case "finish-task":
                task = self._running(instruction.task_id)
                if task is not None:
                    self._take_no_more(task)
            case action:
                raise InvalidEvent(f"Unknown action: {quoted(action)}.", param="header.action")

    def _run(self, instruction: Instruction) -> None:
        if self._task is not None:
            raise InvalidEvent("Another task runs on this connection: finish it first.")
        options = TaskOptions.of(instruction.payload, self._offers)
        self._task = _Task(instruction.task_id, options, Sentences(options.special_words))
        self._last_id = instruction.task_id
        self._to_open = SessionRequest(options.model, options.config, instruction.task_id)
        self._send("task-started", instruction.task_id)

    def _continue(self, instruction: Instruction) -> None:
        task = self._running(instruction.task_id)
        if task is not None and (given := object_in(instruction.payload, "input")).has("context"):
            task.options = task.options.with_context(given)
            self._commands.append(Configure(task.options.config))

    def _running(self, task_id: str) -> _Task | None:
        """Return the task of an instruction; None if that comes too late, as the task takes no more or has failed."""
        if self._task is not None and task_id in self._task.refused:
            return None
        if task_id != self._last_id:
            raise InvalidEvent("No such task runs on this connection.", param="header.task_id")
        return None if self._task is None or self._task.finishing else self._task

    def _refuse(self, error: ClientError, task_id: str | None) -> None:
        """Fail what an error belongs to: the task that runs, or another one that then never begins."""
        task = self._task
        if task is None:
            self._end(error, task_id)
        elif task_id in (None, task.id):
            self._fail(error, task)
        elif len(task.refused) < self._limits.max_errors:
            task.refused.append(task_id)
            self._tell_failure(error, task_id)
        else:
            self._fail(InvalidEvent("There were too many errors on this connection."), task)

    def _fail(self, error: AsrServerError, task: _Task) -> None:
        """Let a task end with an error, after what it has heard is told."""
        task.failure = task.failure or error
        self._take_no_more(task)

    def _take_no_more(self, task: _Task) -> None:
        if not task.finishing:
            task.finishing = True
            self._commands.append(messages.Finish())

    # To the client

    def _tell(self, event: Event, task: _Task) -> None:
        match event:
            case messages.SpeechStarted(item, at):
                task.sentences.start(item, at)
            case messages.Partial():
                self._send_results(task.sentences.partial(event), task)
            case messages.SpeechStopped(item, at):
                task.sentences.stop(item, at)
            case messages.Final():
                self._send_results(task.sentences.final(event), task)
            case messages.UtteranceFailed(item, error):
                self._send_results(task.sentences.forget(item), task)
                self._fail(error, task)
            case messages.Rejected(error):
                self._fail(error, task)
            case messages.Finished():
                self._finish(task)
            case messages.Committed() | messages.Cleared() | messages.Closing():
                pass  # not in this protocol; the last is told whether or not a task runs
            case _:
                assert_never(event)

    def _finish(self, task: _Task) -> None:
        if not task.finishing:
            task.failure = ShuttingDown("The server is shutting down.")
        if task.failure is not None:
            self._end(task.failure, task.id)
        else:
            self._send("task-finished", task.id, {"output": {}, "usage": None})
            self._task = None

    def _end(self, error: AsrServerError, task_id: str | None) -> None:
        self._tell_failure(error, task_id)
        wire = wire_error(error)
        self._close = Close(wire.close_code, wire.task_code or wire.code)

    def _tell_failure(self, error: AsrServerError, task_id: str | None) -> None:
        wire = wire_error(error)
        code = wire.task_code or wire.code
        self._errors.append(code)
        # Clients take an empty name for a broken connection.
        task_id = task_id or self._last_id or self._new_id("task_")
        self._send("task-failed", task_id, error_code=code, error_message=located(error.message, error.param))

    def _send_results(self, results: Iterable[Payload], task: _Task) -> None:
        for payload in results:
            self._send("result-generated", task.id, payload)

    def _send(self, event: str, task_id: str, payload: dict[str, Any] | None = None, **header: str) -> None:
        head = {"task_id": task_id, "event": event, **header, "attributes": {}}
        self._messages.append(encoded({"header": head, "payload": payload or {}}))


PROTOCOL = DashscopeInference
