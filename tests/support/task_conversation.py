"""Conversations with the run-task protocol, in the language of `conversation`: a client, its tasks and their sessions.

Every session that is asked for and every failure that is told for the metrics must be accounted for too.
"""

import json
from collections.abc import Mapping
from typing import Any

from qwen3_asr_server.domain import SessionConfig
from qwen3_asr_server.messages import (
    AppendBytes,
    Committed,
    Event,
    Final,
    Finish,
    Finished,
    Partial,
    SpeechStarted,
    SpeechStopped,
)
from qwen3_asr_server.protocols._base import Offers, SessionRequest
from support.conversation import Dialogue, capabilities

TASK = "65ce3b4d1f0a4e0c9a7d2f4b8c6e7dd5"
"""A name as the SDK makes them."""
OTHER = "b2f1c0de-0000-4000-8000-000000000001"
"""Another task's name, as the vendor's documents have them."""
NEVER_NAMED = "task_000000000000000000001"
"""What a failure before any task is told for."""
TASK_MODEL = "fun-asr-realtime"
AUDIO = bytes(3200)
"""What a client sends at once."""


class TaskConversation(Dialogue):
    """A client of the run-task protocol."""

    def __init__(self, offers: Offers | None = None, **changes: Any) -> None:
        offered = capabilities(**changes)
        self._asked: list[SessionRequest] = []
        self._counted: list[str] = []
        super().__init__("dashscope_inference", {}, offers or (lambda _: offered))

    def says(self, action: str, payload: object = None, task_id: str = TASK) -> None:
        """The client sends an instruction."""
        header = {"streaming": "duplex", "task_id": task_id, "action": action}
        self.says_raw(json.dumps({"header": header, "payload": {"input": {}} if payload is None else payload}))

    def runs(self, task_id: str = TASK, **changes: Any) -> None:
        """The client sends `run-task`, with changes to what the SDK puts into its payload."""
        self.says("run-task", run_payload(**changes), task_id)

    def starts(self, task_id: str = TASK, **changes: Any) -> SessionConfig:
        """The client's task begins; return how its session does."""
        self.runs(task_id, **changes)
        self.hears("task-started", task_id)
        request = self.asks_for_session()
        assert request.model == run_payload(**changes)["model"]
        return request.config

    def continues(self, context: object, task_id: str = TASK) -> None:
        """The client sends another context for its task."""
        self.says("continue-task", {"input": {"context": context}}, task_id)

    def speaks(self, audio: bytes = AUDIO) -> None:
        """The client sends audio, and the session gets it."""
        self.says_raw(audio)
        self.orders(AppendBytes(audio))

    def finishes(self, task_id: str = TASK) -> None:
        """The client sends `finish-task`, and the session is to finish."""
        self.says("finish-task", task_id=task_id)
        self.orders(Finish())

    def asks_for_session(self) -> SessionRequest:
        """Return the next session that is to be opened."""
        self._collect()
        assert self._asked, "no session is asked for"
        return self._asked.pop(0)

    def hears(self, event: str, task_id: str = TASK) -> dict[str, Any]:
        """The client's next message is this event of this task; return its payload."""
        message = self.hears_next()
        assert message["header"] == {"task_id": task_id, "event": event, "attributes": {}}, message
        payload: dict[str, Any] = message["payload"]
        return payload

    def hears_sentence(self, **fields: Any) -> dict[str, Any]:
        """The client's next message is a result with at least these fields; return its sentence."""
        payload = self.hears("result-generated")
        sentence: dict[str, Any] = payload["output"]["sentence"]
        assert {name: sentence.get(name) for name in fields} == fields
        return sentence

    def hears_failure(self, code: str, message: str | None = None, task_id: str = TASK) -> str:
        """The client's next message is this failure, which is counted; return what it says."""
        heard = self.hears_next()
        said: str = heard["header"].pop("error_message")
        header = {"task_id": task_id, "event": "task-failed", "error_code": code, "attributes": {}}
        assert heard == {"header": header, "payload": {}}
        assert message in (None, said)
        assert said
        assert self._counted.pop(0) == code
        return said

    def is_over(self, task_id: str = TASK) -> None:
        """The session answers `Finish`, and the client hears that its task has finished; nothing else happens."""
        self.tells(Finished(""))
        assert self.hears("task-finished", task_id) == {"output": {}, "usage": None}
        self.is_silent()
        assert self.close is None

    def is_silent(self) -> None:
        """Neither side has anything more to take in, and there is nothing to open or to count."""
        super().is_silent()
        assert self._asked == []
        assert self._counted == []

    def _collect(self) -> None:
        super()._collect()
        if (request := self.protocol.session_to_open()) is not None:
            self._asked.append(request)
        self._counted += self.protocol.errors_told()


def run_payload(**changes: Any) -> dict[str, Any]:
    """Return what the SDK puts into `run-task`, with changes."""
    return {
        "model": TASK_MODEL,
        "parameters": {"sample_rate": 16000, "format": "pcm"},
        "input": {},
        "task": "asr",
        "task_group": "audio",
        "function": "recognition",
    } | changes


def partial(item: int, stable: str, unstable: str = "") -> Partial:
    return Partial(item, stable, unstable, "en")


def sentence(item: int, text: str, start: int = 0, stop: int = 16_000) -> list[Event]:
    """Return an utterance without interim results."""
    return [SpeechStarted(item, start), SpeechStopped(item, stop), Committed(item, None), Final(item, text, "en")]


def running(parameters: Mapping[str, Any] | None = None, **changes: Any) -> TaskConversation:
    """Return a conversation whose task has begun, with these parameters and changes to what the server offers."""
    talk = TaskConversation(**changes)
    talk.starts(parameters=parameters)
    talk.is_silent()
    return talk
