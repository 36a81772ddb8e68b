"""Leave to store a file: given to who has a key, shown by an upload that has none.

The vendor's SDKs send local files without the key, to a storage service that knows only what the vendor signed for it.
Here the same server signs and checks: which folder, how much, until when. A leave says nothing about other doors.

Knows no HTTP. The secret lives as long as the process; an upload is begun seconds after its leave was given.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from qwen3_asr_server.errors import Forbidden

POLICY_TTL_S: Final = 300


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be stored."""

    folder: str
    """The one it gives leave for: new and random."""
    max_bytes: int
    """Of each file."""
    expires: float
    """When an upload must have begun, in seconds since 1970."""


class UploadPolicies:
    """Give leave, and check it.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._secret = secrets.token_bytes(32)
        self._clock = clock

    def issue(self, max_bytes: int) -> tuple[Policy, str, str]:
        """Return a new policy, how it is written, and its signature."""
        policy = Policy(secrets.token_hex(16), max_bytes, self._clock() + POLICY_TTL_S)
        text = base64.urlsafe_b64encode(json.dumps(asdict(policy)).encode()).decode()
        return policy, text, self._signature(text)

    def check(self, text: str, signature: str) -> Policy:
        """Return the policy that a client shows.

        Raises:
            Forbidden: it is none of ours, or too old.
        """
        if not hmac.compare_digest(self._signature(text).encode(), signature.encode()):
            raise Forbidden("The upload has no valid policy: ask for one with action=getPolicy.")
        policy = Policy(**json.loads(base64.urlsafe_b64decode(text)))
        if self._clock() >= policy.expires:
            raise Forbidden("The upload's policy has expired: ask for a new one with action=getPolicy.")
        return policy

    def _signature(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
