"""The application without a socket: which doors it has, and how it says what goes wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from qwen3_asr_server import frontends
from qwen3_asr_server.domain import TurnDetection
from qwen3_asr_server.errors import EngineNotReady, InternalError, InvalidValue, Overloaded, TooLarge, UnknownModel
from qwen3_asr_server.frontends import _app
from qwen3_asr_server.protocols import load_protocol, protocol_names
from qwen3_asr_server.runtime.services import Services
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import make_settings


def make_app(**settings: Any) -> FastAPI:
    made = make_settings(**settings)
    return _app.create_app(made, Services(made, engine=FakeEngine(), vad=EnergyVad()))


@asynccontextmanager
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://asr:8001") as http:
        yield http


def websocket_paths(app: FastAPI) -> set[str]:
    return {route.path for route in app.routes if "WebSocket" in type(route).__name__}  # type: ignore[attr-defined]


def test_every_protocol_is_served_with_and_without_a_trailing_slash() -> None:
    paths = websocket_paths(make_app())
    for name in protocol_names():
        path = load_protocol(name).path
        assert {path, f"{path}/"} <= paths
    assert "/api-ws/v1/realtime" in paths


def test_a_module_with_a_router_is_served_as_soon_as_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "from fastapi import APIRouter\nrouter = APIRouter()\n@router.get('/{}')\ndef answer(): return 1\n"
    (tmp_path / "extra_door.py").write_text(body.format("extra"))
    (tmp_path / "_hidden_door.py").write_text(body.format("hidden"))
    (tmp_path / "no_door.py").write_text("router = 'not one'\n")
    monkeypatch.setattr(frontends, "__path__", [*frontends.__path__, str(tmp_path)])
    paths = {route.path for route in make_app().routes}  # type: ignore[attr-defined]
    assert "/extra" in paths
    assert "/hidden" not in paths


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, TurnDetection(threshold=0.5, silence_ms=800)),
        ({"vad_threshold": 0.7}, TurnDetection(threshold=0.7, silence_ms=800)),
        ({"vad_enabled": False}, None),
    ],
)
def test_how_sessions_begin(settings: dict[str, Any], expected: TurnDetection | None) -> None:
    made = make_settings(**settings)
    offered = _app.capabilities_of(made, Services(made, engine=FakeEngine(), vad=EnergyVad()))
    assert offered.turn_detection == expected
    assert offered.default_threshold == made.vad_threshold


def test_what_sessions_are_offered_comes_from_engine_and_settings() -> None:
    made = make_settings(emotion="", max_append_bytes=2048, max_errors=7, finish_grace_s=3)
    offered = _app.capabilities_of(made, Services(made, engine=FakeEngine(), vad=EnergyVad()))
    assert (offered.model, offered.languages, offered.default_language) == ("none", {"en", "zh"}, "en")
    assert (offered.emotion, offered.max_append_bytes, offered.max_errors) == (None, 2048, 7)
    assert offered.finish_grace_s == 3


def test_uvicorn_gets_its_limits_from_the_settings() -> None:
    made = make_settings(max_message_bytes=123456, ping_interval_s=7)
    config = _app.create_server(made, Services(made, engine=FakeEngine(), vad=EnergyVad())).config
    assert (config.ws_max_size, config.ws_max_queue) == (123456, 2)
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (7, None)
    assert (config.ws_per_message_deflate, config.access_log, config.workers) == (False, False, 1)


# Errors over HTTP


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An application with a route that raises what the test puts into `error`."""
    router = APIRouter()
    module = ModuleType("failing")

    @router.get("/fail")
    async def fail() -> None:
        raise module.error

    @router.get("/count")
    async def count(of: int) -> int:
        return of

    monkeypatch.setattr(_app, "_routers", lambda: iter([router]))
    return module


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidValue("No such language."), 400, "InvalidParameter"),
        (UnknownModel("No such model."), 404, "Model.NotExist"),
        (TooLarge("Too large."), 413, "PayloadTooLarge"),
        (Overloaded("Full.", retry_after_s=2.5), 503, "Throttling"),
        (EngineNotReady("Loading."), 503, "ModelUnavailable"),
        (InternalError("Broken."), 500, "InternalError"),
    ],
)
async def test_our_errors_keep_their_message(failing: ModuleType, error: Exception, status: int, code: str) -> None:
    failing.error = error  # type: ignore[attr-defined]
    async with client(make_app()) as http:
        answer = await http.get("/fail")
    assert answer.status_code == status
    assert answer.json() == {"code": code, "message": str(error), "request_id": answer.json()["request_id"]}
    assert answer.headers.get("retry-after") == ("3" if isinstance(error, Overloaded) else None)


async def test_a_bug_is_told_by_its_id_only(failing: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    failing.error = RuntimeError("the key is sk-hush")  # type: ignore[attr-defined]
    async with client(make_app()) as http:
        answer = await http.get("/fail")
    assert answer.status_code == 500
    assert "hush" not in answer.text
    assert "Traceback" not in answer.text
    logged = [record for record in caplog.records if getattr(record, "request_id", None)]
    assert [record.request_id for record in logged] == [answer.json()["request_id"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NotFound"),
        ("POST", "/count", 405, "MethodNotAllowed"),
        ("GET", "/count?of=many", 400, "InvalidParameter"),
        ("GET", "/api-ws/v1/realtime", 426, "UpgradeRequired"),
    ],
)
async def test_requests_that_fit_nowhere(failing: ModuleType, method: str, path: str, status: int, code: str) -> None:
    async with client(make_app()) as http:
        answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["code"] == code
    assert set(answer.json()) == {"code", "message", "request_id"}
