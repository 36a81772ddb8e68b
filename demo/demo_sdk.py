"""Transcribe a WAV file through the official SDK: `make sync-demo`, then

uv run --no-sync python demo/demo_sdk.py --mode vad --file tests/data/speech/conversation.wav

Only `url` differs from a program for the vendor's own service. The confirmed part of a sentence is
printed plainly, the part that may still change in brackets.
"""

import argparse
import base64
import sys
import time
import wave
from pathlib import Path

from dashscope.audio.qwen_omni import MultiModality, OmniRealtimeCallback, OmniRealtimeConversation
from dashscope.audio.qwen_omni.omni_realtime import TranscriptionParams

PACKET_S = 0.1


class Printer(OmniRealtimeCallback):
    """Print what is heard."""

    def on_event(self, message: dict) -> None:
        match message["type"]:
            case "conversation.item.input_audio_transcription.text":
                print(f"  … {message['text']}[{message['stash']}]", flush=True)
            case "conversation.item.input_audio_transcription.completed":
                print(f"final: {message['transcript']}", flush=True)
            case "conversation.item.input_audio_transcription.failed" | "error":
                print(f"{message['type']}: {message['error']['message']}", flush=True)


def main(options: argparse.Namespace) -> None:
    with wave.open(str(options.file)) as header:
        bytes_per_s = header.getframerate() * header.getnchannels() * header.getsampwidth()
    conversation = OmniRealtimeConversation(
        model="qwen3-asr-flash-realtime", url=options.url, callback=Printer(), api_key=options.api_key
    )
    conversation.connect()
    conversation.update_session(
        output_modalities=[MultiModality.TEXT],
        enable_turn_detection=options.mode == "vad",
        transcription_params=TranscriptionParams(language=options.language),
    )
    send_file(conversation, options.file.read_bytes(), round(bytes_per_s * PACKET_S), fast=options.fast)
    if options.mode == "manual":
        conversation.commit()
    conversation.end_session(timeout=60)
    conversation.close()


def send_file(conversation: OmniRealtimeConversation, data: bytes, packet_bytes: int, *, fast: bool) -> None:
    """Send the file as it is: the server reads rate and channels from its header."""
    started = time.monotonic()
    for number, start in enumerate(range(0, len(data), packet_bytes)):
        if not fast:
            time.sleep(max(0.0, started + number * PACKET_S - time.monotonic()))
        conversation.append_audio(base64.b64encode(data[start : start + packet_bytes]).decode())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--file", type=Path, required=True, help="a WAV file, 16 bit")
    parser.add_argument("--mode", choices=("vad", "manual"), default="vad", help="who decides where a sentence ends")
    parser.add_argument("--url", default="ws://127.0.0.1:8001/api-ws/v1/realtime")
    parser.add_argument("--api-key", default="any", help="one of API_KEYS where the server has some")
    parser.add_argument("--language", help="en, zh, …; left out, it is detected")
    parser.add_argument("--fast", action="store_true", help="send at once instead of at the speed of speech")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except (OSError, EOFError, wave.Error) as problem:  # no such file, no WAV, nobody listens, wrong key
        sys.exit(f"demo_sdk: {problem or 'not a WAV file'}")
