"""The servers behind the engine `vllm_http`: which of them work, and which one a new stream goes to.

A stream stays where it began, because its windows are in that server's caches; so does a session, because of its
context, unless its server has far more to do than another. Values and decisions only: `vllm_http` finds out how the
servers are, `_vllm_http_core` takes seats and reports what failed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 10.0
"""A server loads for a minute or so; it should not be idle much longer than that."""
FAR_MORE: Final = 4
"""A server has far more to do than another if it has more streams than twice the other's and these."""
KNOWN_SESSIONS: Final = 4096
"""Sessions whose server is remembered: those that spoke last."""


@dataclass(slots=True, eq=False)
class Server:
    """One `vllm serve`."""

    number: int
    """Place in the setting, from 1: what it is called where its address would tell too much."""
    url: str
    up: bool = False
    reason: str = "was not asked yet"
    """Why it is not up."""
    streams: int = 0
    """Open ones that are with it."""
    taken: int = 0
    """Streams that ever came to it."""
    failures: int = 0
    """In a row."""

    def well(self) -> None:
        """Take it into use."""
        self.up, self.reason, self.failures = True, "", 0

    def failed(self, reason: str) -> None:
        """Note that it cannot be used, or still not."""
        self.up, self.reason = False, reason
        self.failures += 1

    def lost(self, reason: str) -> bool:
        """Take it out of use; False if somebody else has done so already."""
        was_up = self.up
        if was_up:
            self.failed(reason)
        return was_up

    @property
    def retry_s(self) -> float:
        """Seconds until it is worth asking again."""
        doublings = min(self.failures - 1, 16)
        return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**doublings) if self.failures else 0.0

    def take(self) -> None:
        """Count a stream that comes."""
        self.streams += 1
        self.taken += 1

    def leave(self) -> None:
        """Count a stream that goes."""
        self.streams -= 1


class Fleet:
    """All servers.

    Args:
        urls: where they are, in the order of the setting.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.servers = tuple(Server(number, url) for number, url in enumerate(urls, 1))
        self._homes: OrderedDict[int, Server] = OrderedDict()

    def choose(self, session: int | None = None) -> Server | None:
        """Return the server for a stream; None if none is up.

        Args:
            session: whose stream it is. The server of its last one, unless that is lost or has far more to do than
                another; else the one with the fewest streams, among equals the one that was chosen least.
        """
        able = [server for server in self.servers if server.up]
        found = min(able, key=lambda server: (server.streams, server.taken), default=None)
        if found is None or session is None:
            return found
        home = self._homes.pop(session, None)
        if home is not None and home.up and home.streams <= 2 * found.streams + FAR_MORE:
            found = home
        self._homes[session] = found
        if len(self._homes) > KNOWN_SESSIONS:
            self._homes.popitem(last=False)
        return found

    @property
    def up(self) -> int:
        """How many work."""
        return sum(server.up for server in self.servers)

    def why_none(self) -> str:
        """Return in one line why none of them works, without their addresses."""
        if not self.servers:
            return "VLLM_URLS names no server"
        return "; ".join(f"server {server.number} {server.reason}" for server in self.servers)

    def flat(self) -> dict[str, float]:
        """Return how they are, by name; levels, so all are floats."""
        each = {
            f"server_{server.number}_{name}": value
            for server in self.servers
            for name, value in (("up", float(server.up)), ("streams", float(server.streams)))
        }
        return {"servers": float(len(self.servers)), "servers_up": float(self.up)} | each
