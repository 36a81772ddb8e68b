"""Chromium, driven over its DevTools protocol with nothing but `websockets`.

One `Page` is one tab of one fresh browser. Everything the tab reports (console, network, socket frames) is
kept in order in `Page.events`. Waiting happens inside the page, by a MutationObserver, so that nothing is
polled and nothing is missed. Knows nothing of the server or of the demo page.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
START_TIMEOUT_S = 60
CALL_TIMEOUT_S = 30


def fake_microphone(wav: Path) -> Sequence[str]:
    """Return the flags that play `wav` once, from its start, to whoever opens the microphone."""
    return (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}%noloop",
    )


class PageError(Exception):
    """The page threw, or the browser refused a command."""


class Page:
    """A tab. Use `browser_page` to get one."""

    def __init__(self, socket: ClientConnection, session_id: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket
        self._session_id = session_id
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, *, timeout_s: float = CALL_TIMEOUT_S, **params: Any) -> dict[str, Any]:
        """Send a DevTools command and return its result."""
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": params, "sessionId": self._session_id}
        await self._socket.send(json.dumps(command))
        async with asyncio.timeout(timeout_s):
            return await answer

    async def open(self, url: str) -> None:
        """Load a page; scripts may still be running afterwards."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.resize(1200, 800)
        await self.call("Page.navigate", url=url)

    async def resize(self, width: int, height: int) -> None:
        """Give the page so many pixels, whatever frame the browser would draw around it."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def evaluate(self, expression: str, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise, as if the user had asked."""
        result = await self.call(
            "Runtime.evaluate",
            timeout_s=timeout_s,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise PageError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    async def wait_for(self, expression: str, timeout_s: float) -> Any:
        """Return the expression's value as soon as a change of the document makes it true."""
        script = f"""new Promise((resolve) => {{
          const look = () => {{
            const value = ({expression});
            if (value) {{ observer.disconnect(); resolve(value); }}
          }};
          const observer = new MutationObserver(look);
          observer.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
          look();
        }})"""
        return await self.evaluate(script, timeout_s=timeout_s)

    async def screenshot(self) -> bytes:
        """Return what is visible, as PNG."""
        result = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(result["data"])

    def of_kind(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of one kind so far, oldest first."""
        return [event["params"] for event in self.events if event["method"] == method]

    async def listen(self) -> None:
        """Take in what the browser says until it is gone."""
        try:
            async for text in self._socket:
                message = json.loads(text)
                if "id" not in message:
                    self.events.append(message)
                elif not (answer := self._answers[message["id"]]).done():
                    if "error" in message:
                        answer.set_exception(PageError(message["error"]["message"]))
                    else:
                        answer.set_result(message["result"])
        except ConnectionClosed:
            pass


@asynccontextmanager
async def browser_page(profile: Path, flags: Sequence[str] = ()) -> AsyncIterator[Page]:
    """Start a browser with an empty profile and yield its tab; the browser is gone afterwards."""
    binary = shutil.which("chromium")
    assert binary, "the browser test needs Debian's package `chromium`"
    command = [binary, *FLAGS, f"--user-data-dir={profile}", *flags, "about:blank"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            address = await _devtools_address(process.stderr)
        async with connect(address, max_size=None, proxy=None) as socket:
            page = Page(socket, await _attach(socket))
            # Not a TaskGroup: it would wrap every failed assertion of a test into an ExceptionGroup.
            helpers = asyncio.gather(page.listen(), _drain(process.stderr))
            try:
                yield page
            finally:
                helpers.cancel()
                await asyncio.gather(helpers, return_exceptions=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _devtools_address(stderr: asyncio.StreamReader) -> str:
    seen = []
    async for line in stderr:
        seen.append(line.decode(errors="replace"))
        if found := re.search(r"DevTools listening on (ws://\S+)", seen[-1]):
            return found[1]
    raise AssertionError(f"the browser did not start:\n{''.join(seen)}")


async def _drain(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass


async def _attach(socket: ClientConnection) -> str:
    """Return the id of a DevTools session with the first tab."""
    targets = await _ask(socket, "Target.getTargets")
    tab = next(target for target in targets["targetInfos"] if target["type"] == "page")
    attached = await _ask(socket, "Target.attachToTarget", targetId=tab["targetId"], flatten=True)
    session_id: str = attached["sessionId"]
    return session_id


async def _ask(socket: ClientConnection, method: str, **params: Any) -> dict[str, Any]:
    """One command before anybody listens."""
    await socket.send(json.dumps({"id": 0, "method": method, "params": params}))
    async for text in socket:
        message = json.loads(text)
        if message.get("id") == 0:
            result: dict[str, Any] = message["result"]
            return result
    raise AssertionError("the browser closed the connection")
