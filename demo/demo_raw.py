"""Transcribe a WAV file over a bare WebSocket: the whole protocol in one page, with `websockets` only.

uv run --no-sync python demo/demo_raw.py --file tests/data/speech/conversation.wav
"""

import argparse
import asyncio
import base64
import json
import sys
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

PACKET_BYTES = 3200  # 100 ms of 16-bit audio at 16 kHz


async def main(options: argparse.Namespace) -> None:
    data = options.file.read_bytes()
    headers = {"Authorization": f"Bearer {options.api_key}"}
    async with (
        connect(f"{options.url}?model=qwen3-asr-flash-realtime", additional_headers=headers) as socket,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(print_events(socket))
        group.create_task(send_file(socket, data, options))


async def send_file(socket: ClientConnection, data: bytes, options: argparse.Namespace) -> None:
    """Configure the session, send the file (its header tells the rate), and finish."""
    turn_detection = {"type": "server_vad"} if options.mode == "vad" else None
    await send(socket, "session.update", session={"turn_detection": turn_detection})
    for start in range(0, len(data), PACKET_BYTES):
        packet = base64.b64encode(data[start : start + PACKET_BYTES]).decode()
        await send(socket, "input_audio_buffer.append", audio=packet)
        if not options.fast:
            await asyncio.sleep(0.1)
    if options.mode == "manual":
        await send(socket, "input_audio_buffer.commit")
    await send(socket, "session.finish")


async def send(socket: ClientConnection, kind: str, **fields: object) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def print_events(socket: ClientConnection) -> None:
    """Print what comes until the session is finished; then it is for the client to close."""
    async for message in socket:
        event = json.loads(message)
        match event["type"]:
            case "conversation.item.input_audio_transcription.text":
                print(f"  … {event['text']}[{event['stash']}]", flush=True)
            case "conversation.item.input_audio_transcription.completed":
                print(f"final: {event['transcript']}", flush=True)
            case "conversation.item.input_audio_transcription.failed" | "error":
                print(f"{event['type']}: {event['error']['message']}", flush=True)
            case "session.finished":
                return


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--file", type=Path, required=True, help="a WAV file, 16 bit, 16 kHz for the right pace")
    parser.add_argument("--mode", choices=("vad", "manual"), default="vad", help="who decides where a sentence ends")
    parser.add_argument("--url", default="ws://127.0.0.1:8001/api-ws/v1/realtime")
    parser.add_argument("--api-key", default="any", help="one of API_KEYS where the server has some")
    parser.add_argument("--fast", action="store_true", help="send at once instead of at the speed of speech")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        asyncio.run(main(parse_arguments()))
    except (OSError, WebSocketException) as problem:  # no such file, nobody listens, wrong key
        sys.exit(f"demo_raw: {problem}")
