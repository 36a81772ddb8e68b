"""Who may come in: API keys, one-use tickets for browsers, and the origins of web pages.

`AccessControl` is an ASGI middleware in front of every route and socket, so that a refused client gets its
answer before any upgrade and no front end can forget to ask. It knows keys, tickets and paths, not what is
served there. Below it, `scope["state"]["key_id"]` names the key that opened the door (or is None), and a
ticket is no longer part of the query. Made by `_app`; tickets are handed out by `tickets`.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen3_asr_server.errors import AsrServerError, Forbidden, Overloaded, Unauthorized
from qwen3_asr_server.frontends._errors import error_at
from qwen3_asr_server.logs import session_context

OPEN_PATHS: Final = frozenset({"/", "/health", "/health/live", "/health/ready", "/demo"})
"""Served without a key. The demo page is a static file without secrets; what it does needs a ticket."""

SIGNED_UPLOADS: Final = "/api/v1/uploads"
"""What is posted here shows a leave, signed for who has a key: DashScope's SDKs send files without the key."""
RESULTS: Final = "/api/v1/results/"
"""Served without a key to whoever knows the name of a result, as the vendor's are: SDKs fetch them without one."""

_OPEN_FOLDERS: Final = ("/demo/", RESULTS)
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_MAX_TICKETS: Final = 10_000


class ApiKeys:
    """The accepted API keys, held as digests. None at all means that everyone may come in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def key_id(self, authorization: bytes | None) -> str | None:
        """Return the short name of the key in an `Authorization` header, or None when it opens nothing.

        All keys are compared, each in constant time, so that the answer's delay tells nothing about them.
        """
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        found: str | None = None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = digest.hex()[:8]
        return found if scheme.lower() == b"bearer" else None


class Tickets:
    """One-use passes for browsers, which cannot set headers on a WebSocket.

    Args:
        ttl_s: how long a ticket is good for, in seconds.
        capacity: tickets outstanding at once; more are refused until some expire.
        clock: seconds, monotonic.
    """

    def __init__(
        self, ttl_s: float, *, capacity: int = _MAX_TICKETS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ttl_s = ttl_s
        self._capacity = capacity
        self._clock = clock
        self._open: dict[bytes, tuple[str | None, float]] = {}

    def issue(self, key_id: str | None) -> str:
        """Return a new ticket that stands for `key_id`.

        Raises:
            Overloaded: too many tickets are outstanding.
        """
        now = self._clock()
        self._forget_expired(now)
        if len(self._open) >= self._capacity:
            raise Overloaded("Too many tickets are outstanding.", retry_after_s=self.ttl_s)
        ticket = secrets.token_urlsafe(24)
        self._open[_digest(ticket.encode())] = (key_id, now + self.ttl_s)
        return ticket

    def redeem(self, ticket: str) -> str | None:
        """Use a ticket up.

        Returns:
            The id of the key that it was issued for, or None when it was issued while no keys were set.

        Raises:
            Unauthorized: it is unknown, used or too old.
        """
        key_id, expires = self._open.pop(_digest(ticket.encode()), (None, 0.0))
        if self._clock() >= expires:
            raise Unauthorized("The ticket is unknown, used or expired.")
        return key_id

    def _forget_expired(self, now: float) -> None:
        # Every ticket lives equally long, so the oldest stand first.
        while self._open:
            digest, (_, expires) = next(iter(self._open.items()))
            if expires > now:
                return
            del self._open[digest]


class Origins:
    """Which web pages may talk to this server.

    Args:
        allowed: origins (`https://app.example.com`) or hosts (`app.example.com:8443`); `*` allows every page.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        entries = [entry.lower().rstrip("/") for entry in allowed]
        self._any = "*" in entries
        self._allowed = frozenset(entries)

    def allows(self, origin: str | None, host: str) -> bool:
        """Say whether a page of `origin` may talk to the server that the client calls `host`.

        No origin is no page: SDKs and tools may come in. A page of the same host and port is ours; the scheme is not
        compared, as a proxy may have taken the TLS off.
        """
        if origin is None or self._any:
            return True
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        place = _host_and_port(parts.netloc, parts.scheme)
        if place is None:
            return False
        if place == _host_and_port(host.lower(), parts.scheme):
            return True
        return any(place == _place_of_entry(entry, parts.scheme) for entry in self._allowed)


class AccessControl:
    """ASGI middleware: refuses foreign pages with 403, missing or wrong keys with 401, both as JSON.

    Args:
        app: what it guards.
        keys: which keys open; none at all leaves everything open.
        tickets: the ones handed out.
        origins: which pages may act.
        on_refusal: told of every WebSocket that was refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        tickets: Tickets,
        origins: Origins,
        on_refusal: Callable[[AsrServerError], None] = lambda _: None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._tickets = tickets
        self._origins = origins
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection, if it may come in."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            admitted = self._admit(scope)
        except AsrServerError as error:
            if scope["type"] == "websocket":
                self._on_refusal(error)
            await error_at(scope["path"], error)(scope, receive, send)
            return
        key_id = admitted["state"]["key_id"]
        with session_context(**({} if key_id is None else {"key_id": key_id})):
            await self._app(admitted, receive, send)

    def _admit(self, scope: Scope) -> Scope:
        headers = Headers(scope=scope)
        changes_something = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes_something and not self._origins.allows(headers.get("origin"), headers.get("host", "")):
            raise Forbidden("Pages of this origin may not connect; see ALLOWED_ORIGINS.")
        query, ticket = _without_ticket(scope["query_string"]) if scope["type"] == "websocket" else (None, None)
        key_id = self._key_id(scope, headers, ticket)
        admitted = {**scope, "state": {**scope.get("state", {}), "key_id": key_id}}
        if query is not None:
            admitted["query_string"] = query
        return admitted

    def _key_id(self, scope: Scope, headers: Headers, ticket: str | None) -> str | None:
        if not self._keys:
            return None
        authorization = headers.get("authorization")
        key_id = self._keys.key_id(authorization.encode("latin-1") if authorization else None)
        if key_id is not None:
            return key_id
        if ticket is not None:
            return self._tickets.redeem(ticket)
        if scope["type"] == "http" and _is_open(scope["path"], scope["method"]):
            return None
        raise Unauthorized("The API key is missing or wrong: send it as `Authorization: Bearer <key>`.")


class Readers(CORSMiddleware):
    """ASGI middleware: tells browsers that pages of some origins may read the answers; the same that may ask.

    Args:
        app: what answers.
        origins: which pages may.
        exposed: headers of answers that they may read too.
    """

    def __init__(self, app: ASGIApp, *, origins: Origins, exposed: Sequence[str]) -> None:
        super().__init__(app, allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=exposed)
        self._origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        """Say whether a page may read, whichever way the setting writes its origin."""
        return self._origins.allows(origin, host="")


def _is_open(path: str, method: str) -> bool:
    if method == "POST" and path == SIGNED_UPLOADS:
        return True
    return method in _SAFE_METHODS and (path in OPEN_PATHS or path.startswith(_OPEN_FOLDERS))


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _without_ticket(query: bytes) -> tuple[bytes, str | None]:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    tickets = [value for name, value in pairs if name == "ticket"]
    if not tickets:
        return query, None
    return urlencode([pair for pair in pairs if pair[0] != "ticket"]).encode(), tickets[-1]


def _host_and_port(netloc: str, scheme: str) -> tuple[str, int | None] | None:
    """Return host and port, the port filled in from the scheme; None for what is no address."""
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.username is not None:
        return None
    return parts.hostname, port if port is not None else _DEFAULT_PORTS.get(scheme)


def _place_of_entry(entry: str, scheme: str) -> tuple[str, int | None] | None:
    """Resolve an entry of the setting; one that names a scheme matches only pages of that scheme."""
    named, separator, netloc = entry.rpartition("://")
    if separator and named != scheme:
        return None
    return _host_and_port(netloc, scheme)
