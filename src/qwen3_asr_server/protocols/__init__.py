"""The wire protocols: every module here without a leading underscore is one, found by its name.

To add a protocol, add a file that exposes `PROTOCOL`, a class with the shape of `_base.ServerProtocol`.
Nothing is imported before it is asked for. The front end serves what `protocol_names` lists.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import cast

from qwen3_asr_server.protocols._base import ServerProtocol


def protocol_names() -> list[str]:
    """Return the names of all protocols, sorted."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def load_protocol(name: str) -> type[ServerProtocol]:
    """Import the protocol of that name.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    known = protocol_names()
    if name not in known:
        raise ValueError(f"unknown protocol {name!r}; known are: {', '.join(known)}")
    return cast("type[ServerProtocol]", import_module(f"{__name__}.{name}").PROTOCOL)
