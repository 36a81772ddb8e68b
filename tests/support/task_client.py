"""A bare client of the run-task protocol."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from support.invariants import Frame
from support.raw_client import WAIT_S, RawClient, raw_client
from support.server import RunningServer

INFERENCE = "/api-ws/v1/inference"


class TaskClient(RawClient):
    """One connection; `frames` holds everything received so far."""

    async def act(self, action: str, task_id: str = "task-1", **payload: Any) -> None:
        """Send an instruction about a task."""
        header = {"action": action, "task_id": task_id, "streaming": "duplex"}
        await self.socket.send(json.dumps({"header": header, "payload": {"input": {}, **payload}}))

    async def ask(self, task_id: str = "task-1", model: str = "fun-asr-realtime", **parameters: Any) -> None:
        """Ask for a task."""
        names = {"task_group": "audio", "task": "asr", "function": "recognition"}
        await self.act("run-task", task_id, model=model, parameters={"format": "pcm", **parameters}, **names)

    async def run(self, task_id: str = "task-1", model: str = "fun-asr-realtime", **parameters: Any) -> Frame:
        """Ask for a task, and return the answer."""
        await self.ask(task_id, model, **parameters)
        return await self.read_event()

    async def speak(self, pcm: bytes, packet_bytes: int = 12_800) -> None:
        """Send audio."""
        for start in range(0, len(pcm), packet_bytes):
            await self.socket.send(pcm[start : start + packet_bytes])

    async def finish(self, task_id: str = "task-1") -> Frame:
        """End a task, and return its last event."""
        await self.act("finish-task", task_id)
        return await self.read_until_event("task-finished", "task-failed")

    async def read_until_event(self, *names: str) -> Frame:
        """Read up to the next event of one of these names and return it."""
        while (frame := await self.read_event())["header"]["event"] not in names:
            pass
        return frame

    async def read_event(self) -> Frame:
        """Return the next event."""
        async with asyncio.timeout(WAIT_S):
            frame: Frame = json.loads(await self.socket.recv())
        self.frames.append(frame)
        return frame

    @property
    def finals(self) -> list[Frame]:
        """The sentences that have ended, each with the name of its task."""
        return [{"task": task, **sentence} for task, sentence in self._sentences if sentence["end_time"] is not None]

    @property
    def _sentences(self) -> list[tuple[str, Frame]]:
        results = [frame for frame in self.frames if frame["header"]["event"] == "result-generated"]
        return [(frame["header"]["task_id"], frame["payload"]["output"]["sentence"]) for frame in results]


@asynccontextmanager
async def task_client(running: RunningServer, **options: Any) -> AsyncIterator[TaskClient]:
    """Connect to the run-task door; `options` go to `websockets.connect`."""
    url = running.http_url.replace("http", "ws") + INFERENCE
    async with raw_client(url, **options) as client:
        yield TaskClient(client.socket)
