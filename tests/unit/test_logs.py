"""Log records: their form, the fields of their session, and what libraries may say."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from qwen3_asr_server import logs

LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "websockets", "asyncio")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in LIBRARIES)]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("t").makeRecord("t", logging.INFO, "f.py", 1, message, args, None, extra=extra)


def as_json(of: logging.LogRecord) -> dict[str, object]:
    line = logs.JsonFormatter().format(of)
    assert "\n" not in line
    return dict(json.loads(line))


def test_json_holds_message_level_and_extra_fields() -> None:
    entry = as_json(record("opened %s", "door", audio_s=1.5, count=2))
    assert entry.pop("time").endswith("+00:00")  # type: ignore[attr-defined]
    assert entry == {"level": "info", "logger": "t", "message": "opened door", "audio_s": 1.5, "count": 2}


def test_json_keeps_a_record_of_many_lines_on_one() -> None:
    assert as_json(record("a\nb 你好"))["message"] == "a\nb 你好"


def test_json_survives_what_json_cannot_hold() -> None:
    assert (
        as_json(
            record(
                "x",
                value={
                    1,
                },
            )
        )["value"]
        == "{1}"
    )


def test_exceptions_are_written_with_their_trace() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        of = logging.getLogger("t").makeRecord("t", logging.ERROR, "f.py", 1, "failed", (), sys.exc_info())
    assert "ValueError: broken" in str(as_json(of)["exception"])
    assert logs.ConsoleFormatter().format(of).endswith("ValueError: broken")


def test_console_line() -> None:
    line = logs.ConsoleFormatter().format(record("opened", audio_s=1.5))
    assert line.partition(" ")[2] == "INFO    opened audio_s=1.5"


@pytest.mark.parametrize("text", ["one\ntwo", "one\r\n12:00:00 ERROR   forged", "\u2028two", "\x1b[31mred", "\x85"])
def test_neither_message_nor_field_can_forge_a_second_console_line(text: str) -> None:
    for line in (logs.ConsoleFormatter().format(record(text)), logs.ConsoleFormatter().format(record("x", task=text))):
        assert len(line.splitlines()) == 1
        assert line.isprintable()


def test_session_fields_reach_records_and_leave_again() -> None:
    with logs.session_context(session_id="s1", protocol="p"):
        with logs.session_context(utterance=3):
            assert as_json(record("x")).items() >= {"session_id": "s1", "protocol": "p", "utterance": 3}.items()
        assert "utterance" not in as_json(record("x"))
    assert "session_id" not in as_json(record("x"))


def test_a_record_s_own_field_wins() -> None:
    with logs.session_context(session_id="outer"):
        assert as_json(record("x", session_id="own"))["session_id"] == "own"


async def test_tasks_inherit_fields_and_do_not_share_them() -> None:
    async def session(name: str) -> object:
        with logs.session_context(session_id=name):
            await asyncio.sleep(0)
            return as_json(record("x"))["session_id"]

    assert await asyncio.gather(session("a"), session("b")) == ["a", "b"]


@pytest.mark.parametrize("style", ["json", "console"])
def test_configure_sends_everything_through_one_handler(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", style)  # type: ignore[arg-type]
    logging.getLogger("qwen3_asr_server.x").info("ours")
    logging.getLogger("qwen3_asr_server.x").debug("too fine")
    logging.getLogger("uvicorn.error").info("GET /?ticket=secret")
    logging.getLogger("uvicorn.access").info("GET /?ticket=secret")
    logging.getLogger("uvicorn.error").warning("theirs")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "ours" in lines[0]
    assert "theirs" in lines[1]
