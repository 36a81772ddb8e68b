"""Long requests in JSON: a recording in a data URL is kept as a file, and never by many requests in memory."""

import asyncio
import json
import struct
from pathlib import Path

import httpx

from support.doors import CHAT, DASHSCOPE, REST, SILENCE, chat, data_url, user
from support.server import ChildServer, child_server

AT_ONCE = 8
SILENT_BYTES = 6_000_000
MOST_GROWTH_MB = 140
"""Of the peak over an idle server. One burst has 64 MB; it was 230 MB and more with all in memory at once."""


def wav_with_a_long_head() -> bytes:
    """Return a WAV file that is large and soon heard."""
    filler = b"JUNK" + struct.pack("<I", SILENT_BYTES) + bytes(SILENT_BYTES)
    chunks = b"WAVE" + filler + SILENCE[12:]
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


URL = data_url(wav_with_a_long_head())
BODIES = {
    REST: {"url": URL},
    CHAT: chat({"type": "input_audio", "input_audio": {"data": URL.partition(",")[2]}}),
    DASHSCOPE: {"model": "qwen3-asr-flash", "input": {"messages": [user(URL)]}},
}


async def test_bursts_of_data_urls_do_not_fill_the_memory() -> None:
    with child_server() as server:
        idle_mb = memory_mb(server, "VmRSS")
        for door, body in BODIES.items():
            assert await burst(server.http_url + door, json.dumps(body).encode()) == [200] * AT_ONCE
        assert memory_mb(server, "VmHWM") - idle_mb < MOST_GROWTH_MB


async def burst(address: str, content: bytes) -> list[int]:
    """Send the same request many times at once; return the statuses of the answers."""
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        sent = [client.post(address, content=content, headers=headers) for _ in range(AT_ONCE)]
        return [answer.status_code for answer in await asyncio.gather(*sent)]


def memory_mb(server: ChildServer, name: str) -> float:
    """Return one of the figures that the system has of the server's own process."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
