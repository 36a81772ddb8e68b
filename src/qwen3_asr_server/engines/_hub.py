"""Weights from a hub, Hugging Face or ModelScope, fetched by the hub's own library into its own cache.

The library is imported when asked for: it comes with the extras that run such weights, and the embedded engine needs
none. Knows no settings and no engine; called by the command line, and blocks for as long as the download takes.
"""

import logging
from importlib import import_module
from pathlib import Path
from typing import Final, Literal, NamedTuple

from qwen3_asr_server.errors import EngineNotReady

_log = logging.getLogger(__name__)

Hub = Literal["huggingface", "modelscope"]


class _Library(NamedTuple):
    """How to come by a hub's library."""

    title: str
    module: str
    install: str


_LIBRARIES: Final[dict[Hub, _Library]] = {
    "huggingface": _Library("Hugging Face", "huggingface_hub", "the extra 'vllm' or 'transformers' brings it"),
    "modelscope": _Library("ModelScope", "modelscope", "pip install modelscope"),
}

_NOT_THERE: Final = {"RepositoryNotFoundError", "NotExistError", "HFValidationError", "InvalidParameter"}
_NOT_ALLOWED: Final = {"GatedRepoError", "AuthenticationError", "PermissionDeniedError"}
_NOT_REACHED: Final = {"LocalEntryNotFoundError", "ConnectionError", "NetworkError", "RequestException", "TimeoutError"}


def fetch(model: str, hub: Hub) -> Path:
    """Download a model, or what is missing of it, with a progress bar on standard error.

    Args:
        model: its name on the hub, `owner/name`; a local folder is left as it is.
        hub: where from.

    Returns:
        The folder that holds it.

    Raises:
        EngineNotReady: with a reason a user can act upon.
    """
    if Path(model).is_dir():
        return Path(model)
    library = _LIBRARIES[hub]
    try:
        download = import_module(library.module).snapshot_download
    except ImportError as problem:
        message = f"{library.title} needs the package {library.module!r}, which is not installed: {library.install}."
        raise EngineNotReady(message) from problem
    try:
        return Path(download(model))
    except Exception as problem:
        _log.debug("download failed", exc_info=problem)
        raise EngineNotReady(f"{model} could not be fetched: {_reason(problem, library.title)}.") from problem


def weights_on_disk(model: str) -> bool | None:
    """Return whether weights can be loaded without a network: from a folder, or from Hugging Face's cache.

    Args:
        model: hub name or folder.

    Returns:
        None where nobody can tell, as the hub's library is not installed.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            cached = import_module("huggingface_hub").try_to_load_from_cache(model, "config.json")
        except ImportError:
            return None
        except ValueError:  # no name that the hub could have
            return False
        if not isinstance(cached, str):
            return False
        folder = Path(cached).parent
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _reason(problem: Exception, title: str) -> str:
    names = {kind.__name__ for kind in type(problem).__mro__}
    if names & _NOT_ALLOWED:
        return f"{title} wants a token of an account that may have it"
    if names & _NOT_THERE:
        return f"{title} has no such model, or wants a token for it"
    if names & _NOT_REACHED:
        return f"{title} cannot be reached"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return type(problem).__name__
