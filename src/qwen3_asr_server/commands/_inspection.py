"""What the command `doctor` finds out without starting anything: packages, extras, codecs, weights and disks.

Each look gives rows for a person; a row that says what must be mended has the topic `FAILED`. Knows no settings and no
engine: `cli` says what to look at.
"""

import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

FAILED: Final = "FAILED"

_EXTRAS: Final = {
    "vllm": "Qwen3-ASR on a GPU, and word times",
    "vllm-http": "Qwen3-ASR on servers that `vllm serve` runs",
    "transformers": "Qwen3-ASR for a few sessions",
    "qwen-asr": "Qwen3-ASR by its authors' package",
    "words-ja": "word times in Japanese",
    "words-ko": "word times in Korean",
    "demo": "the programs in demo/ that use the SDK",
    "audio": "programs of yours that read the microphone",
}
_CODECS: Final = {
    "MP3": "mp3float",
    "AAC": "aac",
    "ALAC": "alac",
    "FLAC": "flac",
    "Opus": "opus",
    "Vorbis": "vorbis",
    "Speex": "speex",
    "AMR": "amrnb",
    "AMR-WB": "amrwb",
    "WMA": "wmav2",
}


class Row(NamedTuple):
    """A line of the report."""

    topic: str
    text: str


def packages(distribution: str) -> Iterator[Row]:
    """Yield what is installed of what a distribution needs, and of its extras."""
    extras: dict[str, list[str]] = defaultdict(list)
    for requirement in metadata.requires(distribution) or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)", requirement)
        version = _version(name)
        if extra is not None:
            extras[extra[1]].append(f"{name} {version}" if version else "")
        elif version:
            yield Row("package", f"{name} {version}")
        elif "sys_platform" not in requirement:
            yield Row(FAILED, f"{name} is not installed")
    for extra_name, purpose in _EXTRAS.items():
        found = extras.get(extra_name, [])
        if found:
            there = ", ".join(found) if all(found) else f"not installed; for {purpose}"
            yield Row("extra", f"{extra_name}: {there}")


def codecs() -> Iterator[Row]:
    """Yield what recordings may be coded in."""
    try:
        import av
    except ImportError as problem:
        yield Row(FAILED, f"PyAV cannot be imported: {problem}")
        return
    known = [name for name, codec in _CODECS.items() if codec in av.codecs_available]
    yield Row("media", f"FFmpeg of PyAV {av.__version__} decodes PCM, {', '.join(known)}")
    if missing := [name for name in _CODECS if name not in known]:
        yield Row("warning", f"FFmpeg does not decode {', '.join(missing)}.")


def weights(topic: str, model: str, on_disk: bool | None) -> Row:
    """Return whether weights have to be fetched first; None where nobody knows."""
    match on_disk:
        case True:
            return Row(topic, f"{model} is on disk")
        case False:
            return Row("missing", f"{model} is not on disk: `qwen3-asr-server download {model}` fetches it")
        case None:
            return Row(topic, f"{model}: whether it is on disk cannot be told without huggingface-hub")


def disks(max_upload_bytes: int, readable: Iterable[str]) -> Iterator[Row]:
    """Yield where recordings are stored while they are transcribed, and which folders of clients' choice are not there.

    Args:
        max_upload_bytes: largest recording.
        readable: folders that recordings may be named in.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    yield Row("disk", f"{free / 1e9:.0f} GB free in {folder}, where uploads are kept while they are transcribed")
    if free < max_upload_bytes:
        yield Row("warning", f"The largest upload (MAX_UPLOAD_BYTES, {max_upload_bytes / 1e9:.1f} GB) does not fit.")
    for name in readable:
        if not (_is_there(Path(name), folder=True) and os.access(name, os.R_OK | os.X_OK)):
            yield Row("warning", f"{name} of RECORDING_FOLDERS is no folder that can be read.")


def data_folder(folder: Path) -> Row:
    """Return whether what outlives a request can be kept in a folder, which need not be there yet."""
    nearest = next(place for place in (folder, *folder.parents) if _is_there(place))
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Row("data", f"{shutil.disk_usage(nearest).free / 1e9:.0f} GB free for {folder} (DATA_DIR)")
    return Row("warning", f"{nearest} cannot be written: uploads and jobs cannot be kept in {folder} (DATA_DIR).")


def _is_there(place: Path, *, folder: bool = False) -> bool:
    """Say whether a place is there; one that may not be looked at, or has no possible name, is not."""
    try:
        return place.is_dir() if folder else place.exists()
    except OSError:
        return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
