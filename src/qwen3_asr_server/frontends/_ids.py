"""Ids in the vendor's shape, for protocols, which have no randomness of their own. Called by the WebSocket loop."""

import secrets
import string
from typing import Final

_LENGTH: Final = 21
_CHARACTERS: Final = (string.ascii_letters + string.digits).encode()
_TABLE: Final = bytes(_CHARACTERS[byte % len(_CHARACTERS)] for byte in range(256))


def new_id(prefix: str) -> str:
    """Return `prefix` and 21 random letters and digits, 124 bits."""
    return prefix + secrets.token_bytes(_LENGTH).translate(_TABLE).decode("ascii")
