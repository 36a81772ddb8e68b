"""Operations: what the server is, whether it works, and how it is doing.

`GET /` for people and clients, `/health*` for supervisors and balancers, `/metrics` for Prometheus, `/stats`
for a quick look, `POST /api/gpu-offload` to give the model's memory back. `/` and `/health*` are open to all, the
others need a key where keys are set (`_auth`).
"""

from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from qwen3_asr_server import __version__
from qwen3_asr_server.domain import EngineInfo
from qwen3_asr_server.frontends._documents import texts
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"])

_NOT_WELL: Final[dict[str, Any]] = {
    "description": "No; the reason is in it.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["status", "reason"]}}},
}


@router.head("/", include_in_schema=False)
@router.get("/", responses={307: {"description": "A browser is sent to the demo page."}})
async def service_info(request: Request, state: State) -> Response:
    """Say what runs here and where its doors are. A browser is sent to the demo page."""
    if "text/html" in request.headers.get("accept", ""):
        # Relative, so that it also holds behind a proxy that adds a path.
        return RedirectResponse("demo", status_code=307, headers={"Vary": "Accept"})
    body: dict[str, Any] = {
        "name": "qwen3-asr-realtime-server",
        "version": __version__,
        "status": status_of(state),
        "engine": engine_as_json(state.services.engine_info),
        "models": list(state.services.models.names),
        "auth_required": state.auth_required,
        "endpoints": {
            **{name: _websocket_url(request, path) for name, path in state.realtime_paths.items()},
            **{name: f"/{name}" for name in ("health", "metrics", "stats", "docs", "demo")},
            "tickets": "/api/tickets",
            "transcribe": "/api/transcribe",
            "openai_transcriptions": "/v1/audio/transcriptions",
            "openai_chat": "/v1/chat/completions",
            "dashscope_generation": "/api/v1/services/aigc/multimodal-generation/generation",
            "dashscope_transcription": "/api/v1/services/audio/asr/transcription",
        },
        "demo": {"silence_duration_ms": state.page_silence_ms},
    }
    return JSONResponse(body, headers={"Vary": "Accept"})


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(state: State) -> dict[str, Any]:
    """Report everything a person wants to know when something is odd. Always 200 while the process answers."""
    services = state.services
    return {
        "status": status_of(state),
        "reason": reason_of(state),
        "version": __version__,
        "engine": engine_as_json(services.engine_info),
        "model": services.model_status(),
        "models": list(services.models.names),
        "vad": services.vad_name,
        "sessions": {"open": services.admission.in_use, "max": state.limits["max_sessions"]},
        "jobs": {"waiting": state.jobs.waiting, "running": state.jobs.running, "problem": state.jobs.problem},
        "queue": queue_of(state),
        "gpu": await gpus_of(state),
        "auth_required": state.auth_required,
        "limits": dict(state.limits),
        "warnings": list(state.warnings),
    }


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", responses={503: _NOT_WELL})
async def live(state: State) -> JSONResponse:
    """Answer 200 as long as the event loop runs, and 503 when only a new process can recognise anything."""
    if state.services.state == "failed":
        return JSONResponse({"status": "failed", "reason": reason_of(state)}, status_code=503)
    return JSONResponse({"status": "live"})


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses={503: _NOT_WELL})
async def ready(state: State) -> JSONResponse:
    """Answer 200 when a new session would be served, else 503 with the reason: also while the server is full.

    `model` tells how far a load or restart has come: its phase, for how long, which attempt, why the last one failed.
    """
    status = status_of(state)
    body: dict[str, Any] = {"status": status, "model": state.services.model_status()}
    if status == "ready":
        return JSONResponse(body)
    return JSONResponse(body | {"reason": reason_of(state)}, status_code=503, headers={"Retry-After": "2"})


@router.post("/api/gpu-offload")
async def offload(state: State) -> dict[str, Any]:
    """Unload the model now, so that its memory is free; the next client loads it again.

    Answers 503 while sessions are open: none of them loses its model.
    """
    released = await state.services.pool.release()
    return {"released": released, "model": state.services.model_status()}


@router.get("/metrics", response_class=Response, responses={200: {"content": texts("text/plain")}})
async def metrics(state: State) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(state.services.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/stats")
async def stats(state: State) -> dict[str, Any]:
    """Give the same numbers as `/metrics`, the important ones, as JSON."""
    return dict(state.services.stats())


def engine_as_json(info: EngineInfo) -> dict[str, Any]:
    """Return an engine's description as it goes to clients."""
    return {
        "name": info.name,
        "model": info.model,
        "description": info.description,
        "production": info.production,
        "languages": sorted(info.languages),
        "default_language": info.default_language,
        "word_times": info.word_times,
        "context": info.context,
    }


def queue_of(state: AppState) -> dict[str, int]:
    """Return how many pieces of speech wait for their turn at the engine."""
    found = state.services.stats()["scheduler"]
    assert isinstance(found, dict)
    live = found.get("partials_waiting", 0) + found.get("finals_waiting", 0)
    return {"live": live, "recorded": found.get("recorded_waiting", 0)}


async def gpus_of(state: AppState) -> list[dict[str, Any]] | None:
    """Return each GPU with its memory in MiB; None where there is none, or nobody can tell."""
    return [asdict(gpu) for gpu in await state.gpu.gpus()] or None


def status_of(state: AppState) -> str:
    """Return `loading`, `ready`, `full`, `restarting`, `draining` or `failed`."""
    return "failed" if state.failure else state.services.status


def reason_of(state: AppState) -> str | None:
    """Return why a new session would not be served, or None when it would."""
    return state.failure or state.services.reason


def _websocket_url(request: Request, path: str) -> str:
    scheme = "wss" if request.url.scheme == "https" else "ws"
    return f"{scheme}://{request.url.netloc}{path}"
