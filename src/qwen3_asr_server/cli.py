"""The command line: `serve` (the default) and `doctor`. The only module that prints.

Turns arguments into settings, settings into a server, and every failure at start into one sentence and exit
status 1. Knows no protocol and no engine by name.
"""

import argparse
import logging
import platform
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from qwen3_asr_server import __version__, logs
from qwen3_asr_server.config import Settings, explain
from qwen3_asr_server.errors import AsrServerError

if TYPE_CHECKING:
    from qwen3_asr_server.frontends._state import AppState

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status.

    Args:
        arguments: those of the process when None.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = Settings(**_overrides(options))
        logs.configure(settings.log_level, settings.log_format)
        status: int = options.command(settings)
    except ValidationError as error:
        status = _fail(f"The settings are wrong. {explain(error)}")
    except AsrServerError as error:
        status = _fail(error.message)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    from qwen3_asr_server.frontends._app import create_server

    server = create_server(settings)
    try:
        listener = _listen(settings.server_host, settings.server_port)
    except OSError as error:
        return _fail(f"Cannot listen on {settings.server_host}:{settings.server_port}: {error.strerror or error}.")
    with listener:
        _say_where(settings.server_host, listener.getsockname()[1], server.state)
        server.run(sockets=[listener])
    return _fail(server.state.failure) if server.state.failure else 0


def doctor(settings: Settings) -> int:
    """Say what is installed and whether `serve` would work; return 0 if it would, else 1."""
    print(f"qwen3-asr-realtime-server {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in _distributions():
        print(f"       {name} {_version_of(name)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    # SUPPRESS leaves out what was not given, so that a command's parser does not undo a flag before it.
    settings = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = settings.add_argument_group("settings", "each also by environment or .env; see docs/configuration.md")
    group.add_argument("--host", dest="server_host", metavar="ADDRESS", help="address to listen on (SERVER_HOST)")
    group.add_argument("--port", dest="server_port", metavar="PORT", help="port to listen on (SERVER_PORT)")
    group.add_argument("--engine", metavar="NAME", help="which recogniser runs, or auto (ENGINE)")
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (LOG_LEVEL)")
    parser = argparse.ArgumentParser(
        prog="qwen3-asr-server",
        description="Realtime speech recognition that speaks the DashScope Qwen-ASR protocol.",
        parents=[settings],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(command=serve)
    commands = parser.add_subparsers(title="commands", metavar="{serve,doctor}")
    for command, text in (
        (serve, "serve until stopped; what happens without a command"),
        (doctor, "say what is installed and whether it would work; exit status 1 if not"),
    ):
        sub = commands.add_parser(command.__name__, help=text, description=text, parents=[settings])
        sub.set_defaults(command=command)
    return parser


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "command"}


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded, so that a port in use is told at once."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    return socket.create_server((host, port), family=family, backlog=2048)


def _say_where(host: str, port: int, state: AppState) -> None:
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    info = state.services.engine_info
    logger.info("Version    %s", __version__)
    logger.info("HTTP       http://%s:%d (reference at /docs)", shown, port)
    for path in state.realtime_paths.values():
        logger.info("WebSocket  ws://%s:%d%s", shown, port, path)
    logger.info("Demo page  http://%s:%d/demo", shown, port)
    logger.info("Engine     %s: %s", info.name, info.description)
    logger.info("API keys   %s", "required" if state.auth_required else "none set: everyone may connect")
    for warning in state.warnings:
        logger.warning(warning)


def _fail(sentence: str) -> int:
    print(f"qwen3-asr-server: {sentence}", file=sys.stderr)
    return 1
