"""Where a server is, by the address of any of its doors.

Light, as the command line reads addresses before anything else. Called by `transcribe`; knows no HTTP.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

TRANSCRIBE: Final = "/api/transcribe"

_DOORS: Final = (
    "/api-ws/v1/realtime",
    "/api-ws/v1/inference",
    "/api/v1",
    TRANSCRIBE,
    "/compatible-mode/v1/chat/completions",
    "/compatible-mode/v1",
    "/v1/audio/transcriptions",
    "/v1/chat/completions",
    "/v1",
    "/demo",
)
"""What addresses that people have at hand end in, those that end in another one first. Before it is the server."""
_SCHEMES: Final = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    base: str
    """`http://host:port`, and the path below which a proxy serves it; no slash at its end."""
    model: str = ""
    """What the query of a WebSocket's address names; counts where the server has such a model."""


def address_of(url: str) -> Address:
    """Return where a server is.

    Raises:
        ValueError: it is no such address.
    """
    parts = urlsplit(url)
    _ = parts.port  # raises when it is no number
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError("it is ws://, wss://, http:// or https:// with a host")
    if parts.username is not None:
        raise ValueError("a key goes into --api-key")
    path = parts.path.rstrip("/")
    door = next((door for door in _DOORS if path.endswith(door)), "")
    path = path.removesuffix(door)
    return Address(f"{_SCHEMES[parts.scheme]}://{parts.netloc}{path}", parse_qs(parts.query).get("model", [""])[0])
