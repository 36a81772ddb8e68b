"""Answers that take long, without a server: clients that leave or take nothing, and bugs."""

import asyncio
import gc
import json
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from fastapi.responses import PlainTextResponse, Response

from qwen3_asr_server.errors import TooLarge
from qwen3_asr_server.frontends import _answer
from qwen3_asr_server.frontends._answer import Answer, Exchange, Work
from qwen3_asr_server.frontends._errors import error_response

Message = dict[str, Any]
BODY: Sequence[Message] = [
    {"type": "http.request", "body": b"one", "more_body": True},
    {"type": "http.request", "body": b"two", "more_body": False},
]


async def answered(
    work: Work, messages: Iterable[Message] = BODY, *, leaves: bool = False, takes: bool = True
) -> list[Message]:
    """Return what is sent to a client that sends some messages, then leaves or waits."""
    sent: list[Message] = []
    coming = iter(messages)

    async def receive() -> Message:
        message = next(coming, None)
        if message is None and not leaves:
            await asyncio.get_running_loop().create_future()
        return message or {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if not takes:
            await asyncio.get_running_loop().create_future()

    answer = Answer(work, error_response, failure_name="error", send_timeout_s=0.05)
    async with asyncio.timeout(10):
        await answer({"type": "http", "method": "POST", "headers": []}, receive, send)
    return sent


async def test_the_body_reaches_the_work_in_order() -> None:
    async def work(exchange: Exchange) -> Response:
        return PlainTextResponse(b"-".join([chunk async for chunk in exchange.body()]))

    assert (await answered(work))[-1]["body"] == b"one-two"


@pytest.mark.parametrize("messages", [BODY, BODY[:1]])
async def test_work_ends_when_the_client_leaves(messages: Sequence[Message]) -> None:
    ended = []

    async def work(exchange: Exchange) -> None:
        try:
            async for _ in exchange.body():
                pass
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    assert await answered(work, messages, leaves=True) == []
    assert ended


@pytest.mark.parametrize("told", [False, True])
async def test_who_waits_for_a_server_that_ends_is_told_in_the_form_of_the_door(told: bool) -> None:
    sent: list[Message] = []
    waiting = asyncio.Event()

    async def work(exchange: Exchange) -> None:
        if told:
            await exchange.tell({})
        waiting.set()
        await asyncio.get_running_loop().create_future()

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    answer = Answer(work, error_response, send_timeout_s=5)
    task = asyncio.create_task(answer({"type": "http", "method": "POST", "headers": []}, receive, send))
    await waiting.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() is told
    assert sent[0]["status"] == (200 if told else 503)
    assert told or json.loads(sent[1]["body"])["code"] == "Throttling"


async def test_nothing_is_told_after_a_failure() -> None:
    async def work(exchange: Exchange) -> None:
        async def progress() -> None:
            while True:
                await exchange.tell({"done": 1}, "progress")
                await asyncio.sleep(0)

        exchange.beside(progress())
        await asyncio.sleep(0)
        raise TooLarge("Too much.")

    sent: list[Message] = []

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)
        for _ in range(3):
            await asyncio.sleep(0)

    answer = Answer(work, error_response, failure_name="error", send_timeout_s=5)
    async with asyncio.timeout(10):
        await answer({"type": "http", "method": "POST", "headers": []}, receive, send)
    *_, failure, end = [message.get("body", b"") for message in sent]
    assert (failure.partition(b"\n")[0], end) == (b"event: error", b"")


class Held:
    """Stands for a long data URL."""


@pytest.mark.parametrize("fails", [True, False])
async def test_what_the_work_held_is_free_without_the_collector(fails: bool) -> None:
    kept: list[weakref.ref[Any]] = []

    async def work(exchange: Exchange) -> Response:
        held = Held()
        kept.extend([weakref.ref(held), weakref.ref(exchange)])
        if fails:
            raise TooLarge("no")
        return PlainTextResponse("")

    gc.collect()
    gc.disable()
    try:
        await answered(work)
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


async def test_work_ends_when_the_client_takes_no_events() -> None:
    async def work(exchange: Exchange) -> None:
        while True:
            await exchange.tell({})

    sent = await answered(work, takes=False)
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_work_ends_when_the_client_takes_nothing_that_is_told_beside_it() -> None:
    ended = []

    async def work(exchange: Exchange) -> None:
        exchange.beside(exchange.tell({}, "progress"))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    sent = await answered(work, takes=False)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert ended


async def test_a_bug_is_told_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    async def work(exchange: Exchange) -> None:
        raise RuntimeError("the key is sk-hush")

    start, body = await answered(work)
    assert start["status"] == 500
    assert b"hush" not in body["body"]
    assert "a request failed" in caplog.text


async def test_a_failure_after_the_first_event_is_an_event() -> None:
    async def work(exchange: Exchange) -> None:
        await exchange.tell({"text": "é"}, "segment")
        raise TooLarge("Too large.")

    start, segment, failure, end = await answered(work)
    assert start["status"] == 200
    assert segment["body"] == 'event: segment\ndata: {"text": "é"}\n\n'.encode()
    name, data = failure["body"].decode().strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["code"] == "PayloadTooLarge"
    assert not end["more_body"]


async def refuse(exchange: Exchange) -> Response:
    raise TooLarge("no")


async def test_the_rest_of_a_refused_body_is_taken_in_before_the_answer() -> None:
    coming = iter([BODY[0]] * 20 + [BODY[1]])
    start, _ = await answered(refuse, coming)
    assert start["status"] == 413
    assert list(coming) == []


async def test_a_refused_body_that_does_not_end_is_answered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_answer, "_REST_S", 0.05)
    start, _ = await answered(refuse, BODY[:1])
    assert start["status"] == 413


async def test_what_runs_beside_ends_with_the_work() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    async def work(exchange: Exchange) -> Response:
        exchange.beside(forever())
        return PlainTextResponse("done")

    assert (await answered(work))[-1]["body"] == b"done"
