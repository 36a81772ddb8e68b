"""The life of a real engine core under a real server: killed, replaced by another model, released, loaded again.

The tests are one story on one server, in the order in which they stand: each start of vLLM takes half a minute.
"""

import asyncio
import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.children import descendants, ended_within
from support.invariants import COMPLETED, FAILED
from support.process import ServerProcess, running_server
from support.raw_client import RawClient, raw_client
from support.speech import pcm16
from support.tiny_speech import CHECKPOINT, RATE, joined, spoken

START_S = 200.0
OTHER = "tiny-two"
SWAPPED = ("three", "six")
"""Words of the clip, of one token each, that the other model takes for one another."""
CLIP = next(clip for clip in spoken("en") if len(clip.samples) > RATE)
SILENCE = pcm16(np.zeros(round(1.2 * RATE), np.float32))
UTTERANCE = SILENCE + pcm16(CLIP.samples) + SILENCE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    copy = tmp_path_factory.mktemp("weights") / "copy"
    shutil.copytree(CHECKPOINT, copy)
    swap_words(copy)
    with running_server(
        ENGINE="vllm",
        QWEN3_ASR_MODEL_PATH=str(CHECKPOINT),
        QWEN3_ASR_OTHER_MODELS=f"{OTHER}={copy}",
        MODEL_DTYPE="float",
    ) as running:
        yield running


def swap_words(checkpoint: Path) -> None:
    """Let a model write each of two words for the other: their rows in the embeddings, which are its output's too."""
    ids = json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8"))
    rows = [ids[f"Ġ{word}"] for word in SWAPPED]
    weights = load_file(checkpoint / "model.safetensors")
    embeddings = weights["thinker.model.embed_tokens.weight"] = weights["thinker.model.embed_tokens.weight"].copy()
    embeddings[rows] = embeddings[rows[::-1]]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def swapped(text: str) -> str:
    """Return what the other model makes of speech of which one model makes this."""
    words = text.split(" ")
    assert set(words) & set(SWAPPED), "both models say the same"
    return " ".join({SWAPPED[0]: SWAPPED[1], SWAPPED[1]: SWAPPED[0]}.get(word, word) for word in words)


def engine_cores(server: ServerProcess) -> list[int]:
    """Return the process ids of vLLM's engine cores below the server."""
    return [
        pid for pid in descendants(server.process.pid) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def model_of(server: ServerProcess) -> dict[str, Any]:
    return dict(server.get("/health")["model"])


async def until(condition: Callable[[], bool], deadline_s: float = START_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.2)


async def transcribed(client: RawClient) -> str:
    """Speak an utterance and return its text; the engine may be starting."""
    await client.append(UTTERANCE)
    async with asyncio.timeout(START_S):
        while True:
            try:
                return str((await client.read_until(COMPLETED))["transcript"])
            except TimeoutError:
                continue


async def test_a_killed_engine_core_fails_what_was_open_and_the_next_utterance_works(server: ServerProcess) -> None:
    async with raw_client(server.url) as speaking, raw_client(server.url) as silent:
        wanted = await transcribed(silent)
        assert wanted
        await speaking.append(SILENCE + pcm16(joined(spoken("en")[:4])))
        await speaking.read_until("conversation.item.input_audio_transcription.text")
        (core,) = engine_cores(server)
        os.kill(core, signal.SIGKILL)
        await until(lambda: model_of(server)["phase"] == "restarting", 10)
        health = server.get("/health")
        assert health["status"] == "restarting"
        assert health["model"]["attempt"] == 1
        await speaking.append(SILENCE)
        await speaking.read_until(FAILED)
        kinds = [frame["type"].rpartition(".")[2] for frame in speaking.frames]
        assert kinds.index("speech_stopped") < kinds.index("committed") < kinds.index("failed")
        assert await transcribed(speaking) == wanted
        assert await transcribed(silent) == wanted
    assert server.get("/health")["status"] == "ready"
    assert engine_cores(server) != [core]
    assert "asr_engine_deaths_total 1.0" in server.text("/metrics")
    assert server.get("/stats")["engine_counters"]["requests"] > 0


async def test_another_model_takes_the_place_of_the_first(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(raw_client(server.url))
        wanted = await transcribed(client)
        (before,) = engine_cores(server)
        other = asyncio.create_task(
            stack.enter_async_context(raw_client(f"{server.url}?model={OTHER}", open_timeout=40))
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(other), 2)
        assert engine_cores(server) == [before], "a session keeps its model"
        assert await transcribed(client) == wanted
        await client.socket.close()
        assert await transcribed(await other) == swapped(wanted)
        assert model_of(server)["model"] == OTHER
        assert ended_within(before, 1)
        assert len(engine_cores(server)) == 1
        with pytest.raises(InvalidStatus) as refused:
            await stack.enter_async_context(raw_client(server.url, open_timeout=40))
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["Retry-After"]) > 0


async def test_a_released_model_frees_its_processes_and_comes_back(server: ServerProcess) -> None:
    def offload() -> Any:
        request = urllib.request.Request(
            server.url.replace("ws://", "http://").partition("/api")[0] + "/api/gpu-offload"
        )
        request.method = "POST"
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    async with raw_client(f"{server.url}?model={model_of(server)['model']}") as client:
        wanted = await transcribed(client)
    await until(lambda: model_of(server)["leases"] == 0, 10)
    (before,) = engine_cores(server)
    assert b'"released":true' in await asyncio.to_thread(offload)
    assert ended_within(before, 1)
    assert engine_cores(server) == []
    assert model_of(server)["phase"] == "unloaded"
    async with raw_client(server.url) as client:
        assert await transcribed(client) == swapped(wanted), "the default is another model"
    assert model_of(server)["phase"] == "ready"


async def test_an_unknown_model_switches_nothing(server: ServerProcess) -> None:
    (before,) = engine_cores(server)
    async with raw_client(f"{server.url}?model=tiny-three") as client:
        error = await client.read_until("error")
        assert error["error"]["code"] == "Model.NotExist"
        assert OTHER in error["error"]["message"]
        with pytest.raises(ConnectionClosed):
            await client.read_until("never")
    assert engine_cores(server) == [before]
