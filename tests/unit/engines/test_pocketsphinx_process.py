"""One decoder process seen from the server, with small programs in the place of the real one."""

import asyncio
import logging
import sys

import pytest

from qwen3_asr_server.engines._pocketsphinx_process import DecoderProcess
from qwen3_asr_server.engines._pocketsphinx_wire import Ask, Report
from qwen3_asr_server.errors import EngineCrashed, EngineTimeout
from support.children import child_processes

PRELUDE = """
import sys
from qwen3_asr_server.engines._pocketsphinx_wire import HEADER, READY, Report, Told, message

def say(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

def listen():
    number, ask, length = HEADER.unpack(sys.stdin.buffer.read(HEADER.size))
    return number, sys.stdin.buffer.read(length)

"""
ECHO = """
say(message(READY, Told.HEARD))
while True:
    number, audio = listen()
    say(message(number, Told.HEARD, Report(audio.decode(), []).to_body()))
"""
HANG = """
say(message(READY, Told.HEARD))
while True:
    listen()
"""
REFUSE = """
say(message(READY, Told.HEARD))
number, _ = listen()
say(message(number, Told.FAILED, b"RuntimeError"))
listen()
"""
BABBLE = """
say(message(READY, Told.HEARD))
listen()
say(b"\\xff" * 100)
listen()
"""
DIE = """
say(message(READY, Told.HEARD))
listen()
"""
LATE = """
say(message(READY, Told.HEARD))
first, _ = listen()
second, _ = listen()
for number, text in (first, "stale"), (second, "fresh"):
    say(message(number, Told.HEARD, Report(text, []).to_body()))
listen()
"""


def running(program: str) -> DecoderProcess:
    return DecoderProcess((sys.executable, "-c", PRELUDE + program))


async def end(process: DecoderProcess) -> None:
    process.kill()
    async with asyncio.timeout(10):
        await process.ended()
    assert not process.alive


async def test_it_answers_as_long_as_it_lives() -> None:
    process = running(ECHO)
    assert not process.alive
    await process.start(10)
    assert process.alive
    assert process.pid in child_processes()
    for text in ("one", "two", "x" * 1_000_000):
        assert await process.ask(Ask.NOTHING, text.encode(), 10) == Report(text, [])
    await end(process)
    assert process.pid not in child_processes()
    with pytest.raises(EngineCrashed):
        await process.ask(Ask.NOTHING, b"", 10)


@pytest.mark.parametrize("program", [DIE, REFUSE, BABBLE], ids=["dies", "refuses", "babbles"])
async def test_a_fault_is_a_crash_and_is_logged_without_details(program: str, caplog: pytest.LogCaptureFixture) -> None:
    process = running(program)
    await process.start(10)
    with caplog.at_level(logging.WARNING), pytest.raises(EngineCrashed):
        await process.ask(Ask.NOTHING, b"audio", 10)
    assert not process.alive
    await end(process)
    (record,) = caplog.records
    assert sys.executable not in record.getMessage()


async def test_no_answer_in_time_kills_it() -> None:
    process = running(HANG)
    await process.start(10)
    with pytest.raises(EngineTimeout):
        await process.ask(Ask.NOTHING, b"audio", 0.01)
    await end(process)


async def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    process = running(LATE)
    await process.start(10)
    given_up = asyncio.create_task(process.ask(Ask.NOTHING, b"first", 10))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert (await process.ask(Ask.RESTART, b"second", 10)).text == "fresh"
    await end(process)


async def test_what_was_given_up_adds_to_the_time_of_the_next_request() -> None:
    process = running(HANG)
    await process.start(10)
    given_up = asyncio.create_task(process.ask(Ask.NOTHING, b"", 0.2))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    with pytest.raises(EngineTimeout, match=r"0\.3 s"):
        await process.ask(Ask.RESTART, b"", 0.1)
    await end(process)


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        (("/nowhere/to/be/found",), EngineCrashed),
        ((sys.executable, "-c", "raise SystemExit(3)"), EngineCrashed),
        ((sys.executable, "-c", "input()"), EngineTimeout),
    ],
    ids=["no such program", "ends at once", "never ready"],
)
async def test_a_start_that_fails_says_so(command: tuple[str, ...], failure: type[Exception]) -> None:
    process = DecoderProcess(command)
    with pytest.raises(failure) as refusal:
        await process.start(10 if failure is EngineCrashed else 0.05)
    assert "nowhere" not in str(refusal.value)
    await end(process)


async def test_a_start_given_up_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = child_processes()
    process = running("listen()")
    connected = asyncio.Event()
    monkeypatch.setattr(process, "_settled", lambda timeout_s: connected.set() or asyncio.Event().wait())
    starting = asyncio.create_task(process.start(10))
    async with asyncio.timeout(10):
        await connected.wait()
    assert process.pid in child_processes()
    starting.cancel()
    await asyncio.wait([starting])
    await end(process)
    assert child_processes() == before


async def test_one_killed_before_its_start_never_runs() -> None:
    process = running(ECHO)
    process.kill()
    with pytest.raises(EngineCrashed):
        await process.start(10)
    await process.ended()
    assert process.pid is None
