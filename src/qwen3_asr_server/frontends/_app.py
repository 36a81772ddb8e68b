"""The application: settings in, an ASGI app with every door out.

Serves every wire protocol there is and every HTTP front end beside it (a module that exposes `router`), puts
access control in front of all of them, and ties the runtime's life to the app's. The only front end that
knows the settings. Called by `cli` and by tests.
"""

import asyncio
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.exceptions import HTTPException

from qwen3_asr_server import __version__, frontends
from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import TurnDetection
from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.frontends import _errors
from qwen3_asr_server.frontends._auth import AccessControl, ApiKeys, Origins, Readers, Tickets
from qwen3_asr_server.frontends._bodies import Bodies
from qwen3_asr_server.frontends._documents import document
from qwen3_asr_server.frontends._recordings import TIME_HEADERS, TRUNCATED_HEADER
from qwen3_asr_server.frontends._server import Server
from qwen3_asr_server.frontends._state import AppState
from qwen3_asr_server.frontends._upload_policy import UploadPolicies
from qwen3_asr_server.frontends._websocket import serve_websocket
from qwen3_asr_server.protocols import load_protocol, protocol_names
from qwen3_asr_server.protocols._base import Capabilities, ServerProtocol
from qwen3_asr_server.runtime.admission import Admission
from qwen3_asr_server.runtime.from_settings import jobs_options, media_limits, source_limits, upload_folder
from qwen3_asr_server.runtime.job_work import JobWork
from qwen3_asr_server.runtime.jobs import Jobs
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.runtime.uploads import Uploads

logger = logging.getLogger(__name__)

_NOT_LIMITS: Final = frozenset({"server_port", "vad_threshold", "vad_silence_duration_ms"})
"""The numbers among the settings that bound nothing."""

_UPLOADS_PER_RECORDING: Final = 4
"""Recordings that may be on their way here, for each that may be transcribed."""

_DESCRIPTION: Final = """\
Realtime recognition happens on WebSockets, which this page cannot draw:

{doors}

Open them with `Authorization: Bearer <key>` where keys are set, `/api-ws/v1/realtime` also with
`?model=qwen3-asr-flash-realtime`. A browser, which cannot set headers, asks `POST /api/tickets` for a one-use ticket
and adds `ticket=…` to the query instead.
"""


def create_app(settings: Settings, services: Services | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: how it is to behave.
        services: the runtime it serves; made from the settings when None. The app starts and stops it.
    """
    services = services or Services(settings)
    sources, media = source_limits(settings), media_limits(settings)
    capabilities = {model: capabilities_of(settings, services, model) for model in services.models.names}
    found = [load_protocol(name) for name in protocol_names()]
    state = AppState(
        services=services,
        tickets=Tickets(settings.ticket_ttl_s),
        auth_required=bool(settings.api_keys),
        realtime_paths={protocol.name: protocol.path for protocol in found},
        source_limits=sources,
        media_limits=media,
        uploads=Admission(_UPLOADS_PER_RECORDING * settings.max_recordings, what="recordings"),
        bodies=Bodies(settings.max_message_bytes, sources.upload_stall_s),
        stored=Uploads(upload_folder(settings), settings.max_stored_bytes),
        upload_policies=UploadPolicies(),
        jobs=Jobs(jobs_options(settings), JobWork(services, sources, media), services.metrics),
        limits=limits_of(settings),
        warnings=tuple(all_warnings(settings, services)),
        page_silence_ms=settings.vad_silence_duration_ms,
        emotion=settings.emotion,
    )
    app = FastAPI(
        title="qwen3-asr-realtime-server",
        version=__version__,
        description=_DESCRIPTION.format(doors="\n".join(f"* `{path}`" for path in state.realtime_paths.values())),
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: _lifespan(state),
    )
    app.state.asr = state
    _errors.install(app)
    for router in _routers():
        app.include_router(router)
    for protocol in found:
        _mount_protocol(app, protocol, services, capabilities)
    _mount_elsewhere(app, state)
    _guard(app, settings, state)
    document(app)
    return app


def create_server(settings: Settings, services: Services | None = None) -> Server:
    """Build a server around the application; `serve(sockets=[…])` runs it."""
    app = create_app(settings, services)
    state: AppState = app.state.asr
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=settings.max_message_bytes,
        ws_max_queue=2,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return Server(config, state)


def all_warnings(settings: Settings, services: Services) -> Iterator[str]:
    """Yield what an operator should know about these settings and the engine they lead to."""
    info = services.engine_info
    yield from settings.warnings(info.name)
    if not info.production:
        yield f"The engine {info.name} is not for production: it is there to see the server work."


def capabilities_of(settings: Settings, services: Services, model: str | None = None) -> Capabilities:
    """Return what sessions of the realtime protocols are offered with a model; None is the default."""
    info = services.info_of(model or services.models.default)
    return Capabilities(
        model=info.model,
        languages=info.languages,
        default_language=info.default_language,
        models=services.models.known,
        turn_detection=TurnDetection(threshold=settings.vad_threshold) if settings.vad_enabled else None,
        default_threshold=settings.vad_threshold,
        emotion=settings.emotion or None,
        max_append_bytes=settings.max_append_bytes,
        max_errors=settings.max_errors,
        finish_grace_s=settings.finish_grace_s,
    )


def limits_of(settings: Settings) -> dict[str, float]:
    """Return every setting that is a limit, by its name: a new one is reported as soon as it exists."""
    return {
        name: value
        for name, value in settings
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_LIMITS
    }


def _routers() -> Iterator[APIRouter]:
    """Yield the `router` of every module beside this one whose name has no leading underscore."""
    for module in pkgutil.iter_modules(frontends.__path__):
        if not module.name.startswith("_"):
            router = getattr(importlib.import_module(f"{frontends.__name__}.{module.name}"), "router", None)
            if isinstance(router, APIRouter):
                yield router


def _mount_protocol(
    app: FastAPI, protocol: type[ServerProtocol], services: Services, capabilities: Mapping[str, Capabilities]
) -> None:
    def offers(asked: str | None) -> Capabilities:
        return capabilities[services.models.resolve(asked)]

    async def endpoint(websocket: WebSocket) -> None:
        await serve_websocket(websocket, protocol, services, offers)

    async def not_a_websocket() -> None:
        raise HTTPException(426, headers={"Upgrade": "websocket", "Connection": "Upgrade"})

    for path in (protocol.path, f"{protocol.path}/"):
        app.add_api_websocket_route(path, endpoint, name=protocol.name)
        app.add_api_route(path, not_a_websocket, methods=["GET", "HEAD"], include_in_schema=False)


def _mount_elsewhere(app: FastAPI, state: AppState) -> None:
    """Answer a WebSocket at an unknown path with 404 and the known ones; the framework says 403."""
    known = ", ".join(state.realtime_paths.values())

    @app.websocket("/{path:path}")
    async def elsewhere(websocket: WebSocket) -> None:
        await websocket.send_denial_response(_errors.not_found(f"No WebSocket here. There is one at {known}."))


def _guard(app: FastAPI, settings: Settings, state: AppState) -> None:
    """Put access control in front of everything; what is added last is asked first."""

    def on_refusal(error: AsrServerError) -> None:
        reason = type(error).__name__.lower()
        logger.info("refused", extra={"reason": reason})
        state.services.metrics.sessions_refused.labels(reason).inc()

    origins = Origins(settings.allowed_origins)
    app.add_middleware(
        AccessControl,
        keys=ApiKeys(key.get_secret_value() for key in settings.api_keys),
        tickets=state.tickets,
        origins=origins,
        on_refusal=on_refusal,
    )
    if settings.allowed_origins:
        app.add_middleware(Readers, origins=origins, exposed=["Retry-After", *TIME_HEADERS, TRUNCATED_HEADER])


@asynccontextmanager
async def _lifespan(state: AppState) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_run_services(state)), group.create_task(state.stored.run())]
        working = group.create_task(_run_jobs(state))
        yield
        working.cancel()
        await asyncio.wait({working})  # what it has begun is given back while there are services
        for task in running:
            task.cancel()


async def _run_jobs(state: AppState) -> None:
    """Work off jobs until cancelled. Without them, everything else goes on."""
    try:
        await state.jobs.run()
    except Exception:
        logger.exception("jobs are not worked off any more")


async def _run_services(state: AppState) -> None:
    """Start the runtime, keep it until cancelled, stop it; all in one task, as its task groups demand.

    The port answers meanwhile: loading a model takes long, and a supervisor should see that it goes on.
    """
    try:
        await state.services.start()
        await asyncio.get_running_loop().create_future()
    except AsrServerError as error:
        state.failure = error.message
    except Exception:
        logger.exception("the server could not start")
        state.failure = "The server could not start; its log has the details."
    finally:
        await state.services.stop()
