"""The command line: `serve` (the default), `transcribe`, `doctor` and `download`.

Turns arguments into settings, settings into a server, and every failure at start into one sentence and exit
status 1. Knows no protocol and no engine by name. What `transcribe` does is in `commands`.
"""

import argparse
import asyncio
import logging
import platform
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pydantic import ValidationError

from qwen3_asr_server import __version__, logs
from qwen3_asr_server.commands import _inspection as inspection
from qwen3_asr_server.commands._jobs import Wishes
from qwen3_asr_server.commands._screen import drop_output
from qwen3_asr_server.commands.transcribe import FILES_AT_ONCE, add_arguments, transcribe_files
from qwen3_asr_server.config import READERS, Settings, explain
from qwen3_asr_server.errors import AsrServerError, EngineNotReady

if TYPE_CHECKING:
    from qwen3_asr_server.domain import EngineInfo
    from qwen3_asr_server.frontends._state import AppState
    from qwen3_asr_server.runtime.services import Services

logger = logging.getLogger(__name__)

_DISTRIBUTION: Final = "qwen3-asr-realtime-server"
_DOCTOR_DEADLINE_S: Final = 600


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status.

    Args:
        arguments: those of the process when None.
    """
    options = _parser().parse_args(arguments)
    try:
        given = {name: value for name, value in vars(options).items() if name != "command"}
        settings = Settings(**{name: given.pop(name) for name in given.keys() & Settings.model_fields.keys()})
        logs.configure(settings.log_level, settings.log_format)
        status: int = options.command(settings, **given)
    except ValidationError as error:
        status = _fail(f"The settings are wrong. {explain(error)}")
    except UnicodeDecodeError:  # of the only file that is read this early
        status = _fail("The file .env is not text in UTF-8. Save it as UTF-8, or remove it.")
    except AsrServerError as error:
        status = _fail(error.message)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    from qwen3_asr_server.frontends._app import create_server
    from qwen3_asr_server.frontends._server import tune_process

    server = create_server(settings)
    try:
        listener = _listen(settings.server_host, settings.server_port)
    except OSError as error:
        return _fail(f"Cannot listen on {settings.server_host}:{settings.server_port}: {_reason(error)}.")
    with listener:
        _say_where(settings.server_host, listener.getsockname()[1], server.state)
        tune_process()
        server.run(sockets=[listener])
    return _fail(server.state.failure) if server.state.failure else 0


def transcribe(settings: Settings, **given: Any) -> int:
    """Write the transcripts of recordings; return the exit status.

    Args:
        settings: how the engine runs, or the key of the server that is to do it.
        given: see `commands._jobs.Wishes`.
    """
    if settings.log_level != "debug":  # what goes wrong is told in one sentence; the log would tell it again
        logging.getLogger().setLevel(logging.ERROR)
    wishes = Wishes(**given)
    if wishes.url is not None:
        from qwen3_asr_server.commands._there import There

        return transcribe_files(There(wishes.url, settings.dashscope_api_key.get_secret_value()), wishes)
    from qwen3_asr_server.commands._here import Here
    from qwen3_asr_server.runtime.from_settings import media_limits
    from qwen3_asr_server.runtime.services import Services

    # These weights and no others, loaded before the first file; how many clients a server takes says nothing here.
    changes = {"model_loading": "eager", "qwen3_asr_other_models": [], "max_recordings": FILES_AT_ONCE}
    settings = settings.model_copy(update=changes | ({"qwen3_asr_model_path": wishes.model} if wishes.model else {}))
    services = Services(settings)
    info = services.engine_info
    warnings = list(settings.engine_warnings(info.name)) + ([] if info.production else [info.description])
    return transcribe_files(Here(services, media_limits(settings)), wishes, warnings)


def doctor(settings: Settings) -> int:
    """Say what is installed, which engine would run and why, and what is missing; return 0 if `serve` would work."""
    try:
        return _examine(settings)
    except BrokenPipeError:  # as of `doctor | head`
        drop_output()
        return 1


def download(settings: Settings) -> int:
    """Fetch weights from the hub, with progress, and say where they are."""
    from qwen3_asr_server.engines._hub import fetch

    model = settings.qwen3_asr_model_path
    folder = fetch(model, settings.model_hub)
    print(f"{model} is in {folder}")
    if settings.model_hub != "huggingface":  # whose names engines know how to find
        print(f"Set QWEN3_ASR_MODEL_PATH={folder}")
    return 0


def _examine(settings: Settings) -> int:
    from qwen3_asr_server.engines import choose_engine
    from qwen3_asr_server.engines._base import EngineOptions
    from qwen3_asr_server.frontends._app import all_warnings
    from qwen3_asr_server.runtime.services import Services

    logging.getLogger().setLevel(logging.WARNING)
    print(f"qwen3-asr-realtime-server {__version__}, Python {platform.python_version()}, {platform.platform()}")
    complete = _report(
        *inspection.packages(_DISTRIBUTION),
        *inspection.codecs(),
        *inspection.disks(settings.max_upload_bytes, settings.recording_folders),
        inspection.data_folder(settings.data_folder),
    )
    try:
        choice = choose_engine(settings.engine, EngineOptions(model_path=settings.qwen3_asr_model_path))
        _report(("engine", f"{choice.name}: {choice.reason}"), *_weights(settings, choice.name), *_gpus())
        services = Services(settings)
        info = services.engine_info
        _report(("", info.description), ("", _abilities(info)), _aligner(settings, services))
        asyncio.run(_start_and_stop(services))
    except AsrServerError as error:
        _report((inspection.FAILED, error.message))
        return 1
    _report(("model", f"{info.model} loads and answers"))
    _report(("vad", f"{services.vad_name} loads and answers"))
    _report(*(("warning", text) for text in [*all_warnings(settings, services), *_port_warning(settings)]))
    return 0 if complete else 1


def _parser() -> argparse.ArgumentParser:
    settings, address = _shared_flags()
    parser = argparse.ArgumentParser(
        prog="qwen3-asr-server",
        description="Speech recognition, live by DashScope's protocols and of recordings.",
        parents=[settings, address],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(command=serve)
    commands = parser.add_subparsers(title="commands", metavar="{serve,transcribe,doctor,download}")
    subs = {}
    for command, text in (
        (serve, "serve until stopped; what happens without a command"),
        (transcribe, "write the transcripts of recordings, by an engine here or by a server"),
        (doctor, "say what is installed and whether it would work; exit status 1 if not"),
        (download, "fetch weights from a hub (MODEL_HUB), with progress"),
    ):
        flags = [settings] if command is transcribe else [settings, address]
        sub = subs[command] = commands.add_parser(
            command.__name__, help=text, description=text, parents=flags, argument_default=argparse.SUPPRESS
        )
        sub.set_defaults(command=command)
    add_arguments(subs[transcribe])
    subs[download].add_argument(
        "qwen3_asr_model_path",
        metavar="MODEL",
        nargs="?",
        help="name on the hub, such as Qwen/Qwen3-ASR-0.6B; that of QWEN3_ASR_MODEL_PATH when left out",
    )
    return parser


def _shared_flags() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the flags of all commands, and those of commands that care about the address."""
    # SUPPRESS leaves out what was not given, so that a command's parser does not undo a flag before it.
    settings, address = (argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS) for _ in range(2))
    group = settings.add_argument_group("settings", "each also by environment or .env; see docs/configuration.md")
    group.add_argument("--engine", metavar="NAME", help="which recogniser runs, or auto (ENGINE)")
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (LOG_LEVEL)")
    group = address.add_argument_group("address")
    group.add_argument("--host", dest="server_host", metavar="ADDRESS", help="address to listen on (SERVER_HOST)")
    group.add_argument("--port", dest="server_port", metavar="PORT", help="port to listen on (SERVER_PORT)")
    return settings, address


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded, so that a port in use is told at once."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)


def _reason(error: OSError) -> str:
    # asyncio's and socket's helpers append the address in parentheses, which the sentence already names.
    return (error.strerror or str(error)).partition(" (")[0]


def _port_warning(settings: Settings) -> Iterator[str]:
    try:
        _listen(settings.server_host, settings.server_port).close()
    except OSError as error:
        yield f"{settings.server_host}:{settings.server_port} cannot be listened on now: {_reason(error)}."


def _weights(settings: Settings, engine: str) -> Iterator[tuple[str, str]]:
    """Yield which weights are wanted, and whether they have to be fetched first."""
    from qwen3_asr_server.engines._hub import weights_on_disk
    from qwen3_asr_server.runtime.models import named_paths

    if engine in READERS["qwen3_asr_model_path"]:
        for model in named_paths(settings.qwen3_asr_model_path, settings.qwen3_asr_other_models).values():
            yield inspection.weights("weights", model, weights_on_disk(model))


def _aligner(settings: Settings, services: "Services") -> tuple[str, str]:
    """Return which weights place words, if any have to."""
    from qwen3_asr_server.engines._hub import weights_on_disk

    if services.aligner is not None:
        return inspection.weights("aligner", settings.aligner_model_path, weights_on_disk(settings.aligner_model_path))
    if services.engine_info.word_times:
        return "aligner", "not needed: the engine places words itself"
    return "aligner", "off (WORD_TIMES)"


def _gpus() -> Iterator[tuple[str, str]]:
    """Yield the GPUs that an engine could use."""
    from qwen3_asr_server.runtime.gpu import GpuWatch

    found = asyncio.run(GpuWatch.of_this_process().gpus())
    yield from (("gpu", f"{gpu.name}, {gpu.free_mib} of {gpu.total_mib} MiB free") for gpu in found)
    if not found:
        yield "gpu", "none that nvidia-smi knows"


def _report(*rows: tuple[str, str]) -> bool:
    """Print rows; say whether none of them is a failure."""
    for topic, text in rows:
        print(f"{topic:<14} {text}", flush=True)
    return all(topic != inspection.FAILED for topic, _ in rows)


async def _start_and_stop(services: "Services") -> None:
    try:
        async with asyncio.timeout(_DOCTOR_DEADLINE_S):
            await services.start()
    except TimeoutError:
        raise EngineNotReady(f"The engine did not start within {_DOCTOR_DEADLINE_S} s.") from None
    finally:
        await services.stop()


def _say_where(host: str, port: int, state: "AppState") -> None:
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    info = state.services.engine_info
    logger.info("Version    %s", __version__)
    logger.info("HTTP       http://%s:%d (reference at /docs)", shown, port)
    for path in state.realtime_paths.values():
        logger.info("WebSocket  ws://%s:%d%s", shown, port, path)
    logger.info("Demo page  http://%s:%d/demo", shown, port)
    logger.info("Engine     %s: %s %s", info.name, info.description, _abilities(info))
    logger.info("API keys   %s", "required" if state.auth_required else "none set: everyone may connect")
    for warning in state.warnings:
        logger.warning(warning)


def _abilities(info: "EngineInfo") -> str:
    context = "has an effect" if info.context else "is taken and has no effect"
    times = "are available" if info.word_times else "are not available"
    return f"Context (corpus.text) {context}; word times {times}."


def _fail(sentence: str) -> int:
    print(f"qwen3-asr-server: {sentence}", file=sys.stderr)
    return 1
