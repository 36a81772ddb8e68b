"""The demo page in Chromium, its microphone fed with a human recording.

The finals on the page are compared with those that the official SDK gets for the very samples that the page
sent: what the browser's audio path did to the recording is then the same on both sides.

`DEMO_SCREENSHOT=docs/demo.png` writes the README's picture; nothing is written otherwise.
"""

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from support import sdk_client, speech
from support.browser import Page, browser_page, fake_microphone
from support.process import ServerProcess, running_server

pytestmark = pytest.mark.system

SILENCE_MS = 400
STATE_TIMEOUT_S = 30
PLAY_TIMEOUT_S = 60
ITEMS = "[...document.querySelectorAll('#items > li')]"
FINALS = f"{ITEMS}.filter((row) => !row.classList.contains('open')).map((row) => row.querySelector('p').textContent)"
LIVE = f"""(() => {{
  const open = document.querySelector("li.open:not([hidden])");
  const shown = {{
    stable: open?.querySelector(".stable").textContent,
    tail: open?.querySelector(".tail").textContent,
    finals: {FINALS},
  }};
  return shown.stable?.includes(" ") && shown.tail && shown.finals.length > 1 ? shown : null;
}})()"""


@dataclass(frozen=True)
class Played:
    """One recording, heard by the page from start to stop."""

    live: dict[str, Any]
    """Stable text, tail and finals, at a moment when all three were on the screen."""
    picture: bytes
    """The screen a moment later, as PNG."""
    sent_at_live: int
    """Packets that the page had sent by then."""
    packets: list[bytes]
    finals: list[str]
    times: list[str]
    banner: str
    received: list[dict[str, Any]]
    complaints: list[Any]
    hosts: set[str]
    origin: str


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def played(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Played:
    heard = asyncio.run(_play(server, tmp_path_factory.mktemp("browser")))
    if path := os.environ.get("DEMO_SCREENSHOT"):
        Path(path).write_bytes(heard.picture)
    return heard


def test_text_appears_while_the_recording_plays(played: Played) -> None:
    assert played.live["stable"]
    assert played.live["tail"]
    assert played.sent_at_live < speech.conversation().seconds * 10
    kinds = [event["type"].rsplit(".", 1)[1] for event in played.received if "item_id" in event]
    assert kinds.count("text") > 2 * kinds.count("completed")
    assert kinds.index("text") < kinds.index("speech_stopped")


def test_finals_are_those_of_the_sdk(played: Played, server: ServerProcess) -> None:
    with sdk_client.conversation(server.url) as (client, recorder):
        client.update_session(
            output_modalities=sdk_client.TEXT_ONLY,
            enable_turn_detection=True,
            turn_detection_silence_duration_ms=SILENCE_MS,
        )
        sdk_client.send(client, b"".join(played.packets))
        client.end_session(timeout=60)
        expected = [text for text in recorder.transcripts if text]
    assert len(expected) >= 3
    assert played.finals == expected


def test_finals_hold_most_of_what_was_said(played: Played) -> None:
    assert speech.wer(speech.conversation().text, " ".join(played.finals)) < 0.5


def test_every_final_has_its_times(played: Played) -> None:
    assert len(played.times) == len(played.finals)
    assert all(" – " in times and times[-1].isdigit() for times in played.times)


def test_packets_are_100_ms(played: Played) -> None:
    assert {len(packet) for packet in played.packets[:-1]} == {3200}
    assert len(played.packets) > speech.conversation().seconds * 10


def test_page_says_what_the_engine_is_good_for(played: Played, server: ServerProcess) -> None:
    engine = server.get("/")["engine"]
    assert engine["description"] in played.banner
    assert "Not for production" in played.banner


def test_page_has_nothing_to_complain_about(played: Played) -> None:
    assert played.complaints == []


def test_page_talks_to_its_own_host_only(played: Played) -> None:
    assert played.hosts == {played.origin}


async def test_refused_microphone_is_explained(server: ServerProcess, tmp_path: Path) -> None:
    async with _demo(server, tmp_path, "--deny-permission-prompts", "--use-fake-device-for-media-stream") as page:
        await _press(page)
        await _in_state(page, "idle")
        assert "microphone" in await _problem(page)


async def test_missing_microphone_is_explained(server: ServerProcess, tmp_path: Path) -> None:
    async with _demo(server, tmp_path, "--use-fake-ui-for-media-stream") as page:
        await _press(page)
        assert await _problem(page) == "No microphone was found."


async def test_lost_connection_is_explained(tmp_path: Path) -> None:
    with _mortal_server() as own:
        async with _listening(own, tmp_path) as page:
            own.process.kill()
            assert "lost" in await _problem(page)
            await _in_state(page, "idle")
        await asyncio.to_thread(own.process.wait, STATE_TIMEOUT_S)


async def test_draining_server_still_delivers(tmp_path: Path) -> None:
    with _mortal_server() as own:
        async with _listening(own, tmp_path) as page:
            await page.wait_for("document.querySelector('li.open:not([hidden]) .tail')?.textContent", PLAY_TIMEOUT_S)
            own.process.send_signal(signal.SIGTERM)
            assert await _problem(page)
            await _in_state(page, "idle")
            assert await page.evaluate(f"{FINALS}.length") > 0
        await asyncio.to_thread(own.process.wait, STATE_TIMEOUT_S)


async def test_key_is_asked_for_and_checked(tmp_path: Path) -> None:
    with running_server(API_KEYS="sk-right") as own:
        async with _demo(own, tmp_path, *fake_microphone(speech.CONVERSATION_WAV)) as page:
            assert await page.evaluate("document.getElementById('key').checkVisibility()")
            await page.evaluate("document.getElementById('key').value = 'sk-wrong'")
            await _press(page)
            assert await _problem(page) == "The server does not accept this API key."
            await page.evaluate("document.getElementById('key').value = 'sk-right'")
            await _press(page)
            await _in_state(page, "listening")
            assert "sk-right" not in json.dumps(page.of_kind("Network.webSocketCreated"))


async def test_key_field_is_hidden_where_no_key_is_needed(server: ServerProcess, tmp_path: Path) -> None:
    async with _demo(server, tmp_path) as page:
        assert not await page.evaluate("document.getElementById('key').checkVisibility()")


@contextmanager
def _mortal_server() -> Iterator[ServerProcess]:
    """Run a server that the test ends itself."""
    with pytest.raises(AssertionError, match="the server died"), running_server() as running:
        yield running


async def _play(server: ServerProcess, folder: Path) -> Played:
    async with _listening(server, folder) as page:
        live = await page.wait_for(LIVE, PLAY_TIMEOUT_S)
        sent_at_live = len(_packets(page))
        picture = await page.screenshot()
        await page.wait_for(
            f"document.getElementById('sent').textContent >= '0:{speech.conversation().seconds + 1.5:02.0f}'",
            PLAY_TIMEOUT_S,
        )
        await _press(page)
        await _in_state(page, "idle")
        return Played(
            live=live,
            picture=picture,
            sent_at_live=sent_at_live,
            packets=_packets(page),
            finals=await page.evaluate(FINALS),
            times=await page.evaluate(f"{ITEMS}.map((row) => row.querySelector('time').textContent)"),
            banner=await page.evaluate("document.getElementById('engine').innerText"),
            received=[_payload(frame) for frame in page.of_kind("Network.webSocketFrameReceived")],
            complaints=[
                event
                for kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
                for event in page.of_kind(kind)
            ],
            hosts={urlsplit(url).netloc for url in _urls(page)},
            origin=f"127.0.0.1:{server.port}",
        )


@asynccontextmanager
async def _demo(server: ServerProcess, folder: Path, *flags: str) -> AsyncIterator[Page]:
    """Open the page and wait until Start can be pressed."""
    async with browser_page(folder / "profile", flags) as page:
        await page.open(f"http://127.0.0.1:{server.port}/demo")
        await _in_state(page, "idle")
        yield page


@asynccontextmanager
async def _listening(server: ServerProcess, folder: Path) -> AsyncIterator[Page]:
    """Open the page and let it hear the conversation."""
    async with _demo(server, folder, *fake_microphone(speech.CONVERSATION_WAV)) as page:
        await _press(page)
        await _in_state(page, "listening")
        yield page


async def _press(page: Page) -> None:
    await page.evaluate("document.getElementById('toggle').click()")


async def _in_state(page: Page, state: str) -> None:
    await page.wait_for(f"document.body?.dataset.state === '{state}'", STATE_TIMEOUT_S)


async def _problem(page: Page) -> str:
    """Wait for a message in plain words and return it."""
    text: str = await page.wait_for("document.getElementById('problem').textContent", STATE_TIMEOUT_S)
    return text


def _payload(frame: dict[str, Any]) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(frame["response"]["payloadData"])
    return payload


def _packets(page: Page) -> list[bytes]:
    """Return the audio that the page has sent."""
    sent = [_payload(frame) for frame in page.of_kind("Network.webSocketFrameSent")]
    return [base64.b64decode(event["audio"]) for event in sent if event["type"] == "input_audio_buffer.append"]


def _urls(page: Page) -> Iterator[str]:
    for request in page.of_kind("Network.requestWillBeSent"):
        yield request["request"]["url"]
    for socket in page.of_kind("Network.webSocketCreated"):
        yield socket["url"]
