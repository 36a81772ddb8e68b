"""What the tests of DashScope's HTTP clients share: a recording in many places, and the server that hears it.

Needs no SDK in particular: `make test-sdk` runs it with several.
"""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support import speech
from support.audio_files import wav_bytes

MODEL = "qwen3-asr-flash"
PROMPTS = ("conf-full", "queue-thankyou")
SAMPLES = speech.joined(PROMPTS, gap_s=1.2)
WORDS = " ".join(speech.clip(name).text for name in PROMPTS)
SECONDS = len(SAMPLES) / speech.RATE
WORST_WER = 0.5
"""The embedded engine on two short prompts; here real words must come."""


@dataclass(frozen=True, slots=True)
class RecordingServer:
    """A server for recordings, as clients know it."""

    base_url: str
    """For `dashscope.base_http_api_url`."""
    key: str
    data: Path
    """Its DATA_DIR."""

    @property
    def kept(self) -> set[Path]:
        """Every file that it keeps."""
        return {path for path in self.data.rglob("*") if path.is_file()}


def wav(samples: Any = SAMPLES) -> bytes:
    """Return a WAV file."""
    return wav_bytes(samples)


def data_url(file: bytes) -> str:
    """Return a file as a URL."""
    return f"data:audio/wav;base64,{base64.b64encode(file).decode()}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder while the `with` block runs; yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()
            thread.join()
