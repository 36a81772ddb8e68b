"""Keys, tickets and origins; then the middleware that asks for them, over a bare ASGI app."""

import hmac
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from qwen3_asr_server.errors import Overloaded, Unauthorized
from qwen3_asr_server.frontends import _auth
from qwen3_asr_server.frontends._auth import AccessControl, ApiKeys, Origins, Tickets

KEY = "sk-right"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Keys


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} "])
def test_a_key_opens_in_any_case_of_bearer(header: str) -> None:
    assert ApiKeys(["other", KEY]).key_id(header.encode())


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer sk-righ"],
)
def test_everything_else_does_not(header: bytes | None) -> None:
    assert ApiKeys([KEY]).key_id(header) is None


def test_keys_may_hold_any_characters() -> None:
    assert ApiKeys(["schlüssel 钥匙"]).key_id("Bearer schlüssel 钥匙".encode())


def test_a_key_s_id_is_stable_and_does_not_show_it() -> None:
    first, second = (ApiKeys(["a", KEY]).key_id(f"Bearer {key}".encode()) for key in ("a", KEY))
    assert first is not None
    assert second is not None
    assert first != second
    assert ApiKeys([KEY]).key_id(f"Bearer {KEY}".encode()) == second
    assert len(second) == 8
    assert second not in KEY


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    keys = ApiKeys(["first", "second", "third"])
    monkeypatch.setattr(_auth.hmac, "compare_digest", spy)
    for header in (b"Bearer first", b"Bearer none", None):
        compared.clear()
        keys.key_id(header)
        assert len(compared) == 3
        assert {len(value) for pair in compared for value in pair} == {32}


# Tickets


def test_a_ticket_opens_once() -> None:
    tickets = Tickets(60)
    ticket = tickets.issue("key")
    assert tickets.redeem(ticket) == "key"
    with pytest.raises(Unauthorized):
        tickets.redeem(ticket)


def test_a_ticket_ends_with_its_time() -> None:
    clock = Clock()
    tickets = Tickets(60, clock=clock)
    early, late = tickets.issue("key"), tickets.issue("key")
    clock.now += 59.9
    assert tickets.redeem(early) == "key"
    clock.now += 0.1
    with pytest.raises(Unauthorized):
        tickets.redeem(late)


@pytest.mark.parametrize("ticket", ["", "x", "\x00", "🎫", "x" * 100_000])
def test_an_invented_ticket_does_not_open(ticket: str) -> None:
    with pytest.raises(Unauthorized):
        Tickets(60).redeem(ticket)


def test_tickets_are_bounded_and_expired_ones_make_room() -> None:
    clock = Clock()
    tickets = Tickets(60, capacity=2, clock=clock)
    tickets.issue("a")
    clock.now += 30
    kept = tickets.issue("b")
    with pytest.raises(Overloaded):
        tickets.issue("c")
    clock.now += 30
    tickets.issue("c")
    assert tickets.redeem(kept) == "b"


# Origins


@pytest.mark.parametrize(
    ("allowed", "origin", "host", "expected"),
    [
        ([], None, "asr:8001", True),
        ([], "http://asr:8001", "asr:8001", True),
        ([], "HTTP://ASR:8001", "asr:8001", True),
        ([], "http://asr", "asr:80", True),
        ([], "http://asr:80", "asr", True),
        ([], "https://asr", "asr", True),
        ([], "https://asr:443", "asr", True),
        ([], "https://asr", "asr:443", True),
        ([], "http://[::1]:8001", "[::1]:8001", True),
        ([], "http://asr:8002", "asr:8001", False),
        ([], "http://asr", "asr:443", False),
        ([], "http://evil", "asr:8001", False),
        ([], "http://asr.evil:8001", "asr:8001", False),
        ([], "http://asr:8001@evil", "asr:8001", False),
        ([], "null", "asr:8001", False),
        ([], "", "asr:8001", False),
        ([], "http://", "", False),
        ([], "http://asr:port", "asr:port", False),
        ([], "http://[::1", "asr:8001", False),
        ([], "http://asr:8001", "[::1", False),
        (["https://app.example.com"], "https://app.example.com", "asr:8001", True),
        (["https://app.example.com/"], "https://app.example.com:443", "asr:8001", True),
        (["https://app.example.com"], "http://app.example.com", "asr:8001", False),
        (["app.example.com"], "http://app.example.com", "asr:8001", True),
        (["app.example.com:8443"], "https://app.example.com:8443", "asr:8001", True),
        (["https://app.example.com"], "https://example.com", "asr:8001", False),
        (["*"], "null", "asr:8001", True),
        (["*"], "http://evil", "asr:8001", True),
    ],
)
def test_origins(allowed: list[str], origin: str | None, host: str, expected: bool) -> None:
    assert Origins(allowed).allows(origin, host) is expected


# The middleware


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what the middleware lets an application see."""
    seen = {"key_id": scope["state"]["key_id"], "query": scope["query_string"].decode()}
    await JSONResponse(seen)(scope, receive, send)


def guarded(keys: list[str], tickets: Tickets | None = None) -> AccessControl:
    return AccessControl(echo, keys=ApiKeys(keys), tickets=tickets or Tickets(60), origins=Origins([]))


def client(app: AccessControl) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://asr:8001")


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready", "/demo", "/demo/app.js"])
async def test_what_stays_open_with_keys_set(path: str) -> None:
    async with client(guarded([KEY])) as http:
        answer = await http.get(path)
    assert answer.status_code == 200
    assert answer.json()["key_id"] is None


@pytest.mark.parametrize(
    "path", ["/metrics", "/stats", "/docs", "/docs/x.js", "/openapi.json", "/nothing", "/health/x", "/demonstration"]
)
async def test_what_needs_a_key(path: str) -> None:
    async with client(guarded([KEY])) as http:
        refused = await http.get(path)
        answered = await http.get(path, headers={"Authorization": f"Bearer {KEY}"})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    body = refused.json()
    assert set(body) == {"code", "message", "request_id"}
    assert body["code"] == "InvalidApiKey"
    assert answered.status_code == 200
    assert len(answered.json()["key_id"]) == 8


async def test_open_paths_are_open_for_reading_only() -> None:
    async with client(guarded([KEY])) as http:
        assert (await http.post("/")).status_code == 401


async def test_without_keys_everything_is_open() -> None:
    async with client(guarded([])) as http:
        answer = await http.get("/stats", headers={"Authorization": "Bearer whatever"})
    assert answer.json()["key_id"] is None


@pytest.mark.parametrize(("method", "status"), [("POST", 403), ("DELETE", 403), ("GET", 200), ("HEAD", 200)])
async def test_a_foreign_page_may_read_but_not_act(method: str, status: int) -> None:
    async with client(guarded([])) as http:
        answer = await http.request(method, "/api/tickets", headers={"Origin": "http://evil"})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "AccessDenied"


async def open_socket(app: AccessControl, query: str = "", headers: dict[str, str] | None = None) -> list[Any]:
    """Return the messages with which `app` answers the opening of a WebSocket."""
    sent: list[Any] = []
    scope = {
        "type": "websocket",
        "path": "/ws",
        "query_string": query.encode(),
        "headers": [(b"host", b"asr:8001"), *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())],
        "extensions": {"websocket.http.response": {}},
    }

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_a_refused_socket_gets_an_http_answer() -> None:
    start, body = await open_socket(guarded([KEY]))
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert b"InvalidApiKey" in body["body"]


async def test_a_ticket_opens_a_socket_and_is_not_passed_on() -> None:
    tickets = Tickets(60)
    ticket = tickets.issue("12345678")
    start, body = await open_socket(guarded([KEY], tickets), f"model=m&ticket={ticket}&x=%20a")
    assert start["status"] == 200
    assert body["body"] == b'{"key_id":"12345678","query":"model=m&x=+a"}'
    start, _ = await open_socket(guarded([KEY], tickets), f"ticket={ticket}")
    assert start["status"] == 401


async def test_a_ticket_opens_no_http_request() -> None:
    tickets = Tickets(60)
    async with client(guarded([KEY], tickets)) as http:
        assert (await http.get("/stats", params={"ticket": tickets.issue("k")})).status_code == 401


async def test_a_foreign_page_does_not_burn_a_ticket() -> None:
    tickets = Tickets(60)
    ticket = tickets.issue("12345678")
    start, _ = await open_socket(guarded([KEY], tickets), f"ticket={ticket}", {"Origin": "http://evil"})
    assert start["status"] == 403
    assert tickets.redeem(ticket) == "12345678"


async def test_other_scopes_pass() -> None:
    reached: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    async def nothing() -> Any: ...

    async def drop(message: Any) -> None: ...

    control = AccessControl(app, keys=ApiKeys([KEY]), tickets=Tickets(60), origins=Origins([]))
    await control({"type": "lifespan"}, nothing, drop)
    assert reached == ["lifespan"]
