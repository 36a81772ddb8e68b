"""Long requests in JSON: a recording in a data URL is kept as a file, and never by many requests in memory."""

import asyncio
import json
import struct
from pathlib import Path

import httpx
import pytest

from support.doors import CHAT, DASHSCOPE, REST, SILENCE, chat, data_url, user
from support.server import child_server

BURSTS = 3
AT_ONCE = 8
SILENT_BYTES = 6_000_000
MOST_GROWTH_MB = 140
"""Of the peak over an idle server. The requests of one burst have 64 MB, and took thrice as much when all were kept."""


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


@pytest.mark.parametrize("door", BODIES)
async def test_bursts_of_data_urls_do_not_fill_the_memory(door: str) -> None:
    content = json.dumps(BODIES[door]).encode()
    limits = httpx.Limits(max_keepalive_connections=0)
    with child_server() as server:
        idle_mb = memory_mb(server.process.pid, "VmRSS")
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
            for _ in range(BURSTS):
                sent = [
                    client.post(server.http_url + door, content=content, headers={"content-type": "application/json"})
                    for _ in range(AT_ONCE)
                ]
                assert [answer.status_code for answer in await asyncio.gather(*sent)] == [200] * AT_ONCE
        growth_mb = memory_mb(server.process.pid, "VmHWM") - idle_mb
    assert growth_mb < MOST_GROWTH_MB


def memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
