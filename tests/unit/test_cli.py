"""The command line: what it understands, and that a failure at start is one sentence and status 1."""

import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qwen3_asr_server import __version__, cli
from qwen3_asr_server.commands import _inspection
from qwen3_asr_server.commands._address import Address
from qwen3_asr_server.commands._here import Here
from qwen3_asr_server.commands.transcribe import EXIT_CODES, FILES_AT_ONCE
from qwen3_asr_server.config import Settings
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.runtime.services import Services

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SERVER_HOST", "127.0.0.1")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def run(*arguments: str) -> int:
    """Run the command line in this process and return its exit status."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    code = caught.value.code
    assert isinstance(code, int)
    return code


def settings_given(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    """Return the settings that `serve` is run with."""
    seen: list[Settings] = []

    def serve(settings: Settings) -> int:
        """Record."""
        seen.append(settings)
        return 0

    monkeypatch.setattr(cli, "serve", serve)
    assert run(*arguments) == 0
    return seen[0]


# What it understands


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"qwen3-asr-server {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["doctor", "--help"], ["download", "--help"]])
def test_help_names_commands_and_flags(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    expected = ["--host", "--port", "--engine", "--log-level"] + (
        ["serve", "transcribe", "doctor", "download"] if arguments == ["--help"] else []
    )
    assert all(word in text for word in expected)


def test_help_of_transcribe_names_its_flags_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transcribe", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    flags = ("--language", "--words", "--context", "--format", "--output-dir", "--stdout", "--channels", "--model")
    assert all(
        word in text
        for word in (*flags, "--url", "--api-key", "--force", "--quiet", "--engine", "--log-level", EXIT_CODES)
    )
    assert "--port" not in text


def test_transcribe_is_given_its_flags_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Settings, dict[str, Any]]] = []

    def transcribe(settings: Settings, **wishes: Any) -> int:
        """Record."""
        seen.append((settings, wishes))
        return 0

    monkeypatch.setattr(cli, "transcribe", transcribe)
    flags = ["--engine", "x", "a.wav", "b.mp4", "--model", "folder", "--language", "en", "--words", "--format", "srt"]
    assert run("transcribe", *flags) == 0
    settings, wishes = seen[0]
    assert settings.engine == "x"
    assert wishes == {
        "files": [Path("a.wav"), Path("b.mp4")],
        "language": "en",
        "words": True,
        "form": "srt",
        "model": "folder",
    }


def test_limits_of_a_server_do_not_keep_files_from_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Services] = []

    def transcribe_files(here: Here, wishes: Any, warnings: Any) -> int:
        seen.append(here._services)
        return 0

    monkeypatch.setattr(cli, "transcribe_files", transcribe_files)
    monkeypatch.setenv("MAX_RECORDINGS", "1")
    assert run("transcribe", "a.wav", "b.wav", "--engine", "pocketsphinx") == 0
    with ExitStack() as places:
        for _ in range(FILES_AT_ONCE):
            places.enter_context(seen[0].recordings.admit())


def test_the_key_of_another_server_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []

    def transcribe(settings: Settings, *, url: Any, **wishes: Any) -> int:
        """Record."""
        seen.append((settings.dashscope_api_key.get_secret_value(), url))
        return 0

    monkeypatch.setattr(cli, "transcribe", transcribe)
    monkeypatch.setenv("DASHSCOPE_API_KEY", "from the environment")
    for flags in ([], ["--api-key", "from the flag"]):
        assert run("transcribe", "a.wav", "--url", "ws://host:1/api-ws/v1/realtime", *flags) == 0
    assert seen == [(key, Address("http://host:1")) for key in ("from the environment", "from the flag")]


@pytest.mark.parametrize("place", ["none", "before", "after"])
def test_flags_win_over_settings_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("SERVER_PORT", "1")
    monkeypatch.setenv("MAX_ERRORS", "7")
    flags = ["--host", "::1", "--port", "2", "--engine", "x", "--log-level", "DEBUG"]
    arguments = {"none": flags, "before": [*flags, "serve"], "after": ["serve", *flags]}[place]
    settings = settings_given(monkeypatch, *arguments)
    assert (settings.server_host, settings.server_port, settings.engine) == ("::1", 2, "x")
    assert (settings.log_level, settings.max_errors) == ("debug", 7)


def test_without_arguments_it_serves_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_given(monkeypatch) == Settings()


@pytest.mark.parametrize("arguments", [["dance"], ["--colour"], ["--port"]])
def test_nonsense_is_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("program", [["-m", "qwen3_asr_server"], [str(ROOT / "main.py")]])
def test_other_ways_to_start_it(program: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, *program, "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == f"qwen3-asr-server {__version__}\n"


# Failures at start


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expect status 1, and return the one line that says why."""
    assert run(*arguments) == 1
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("qwen3-asr-server: ")]
    assert len(lines) == 1
    assert "Traceback" not in output.err
    return lines[0]


@pytest.mark.parametrize("command", [[], ["doctor"]])
def test_wrong_settings(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert "SERVER_PORT: " in failure(capsys, *command, "--port", "http")


def test_an_engine_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    text = failure(capsys, "--port", "0", "--engine", "nonesuch")
    assert "nonesuch" in text
    assert "pocketsphinx" in text


def test_a_settings_file_that_is_not_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("API_KEYS=schlüssel".encode("latin-1"))
    assert failure(capsys) == "qwen3-asr-server: The file .env is not text in UTF-8. Save it as UTF-8, or remove it."


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = failure(capsys, "--port", str(port))
    assert text == f"qwen3-asr-server: Cannot listen on 127.0.0.1:{port}: Address already in use."


def test_an_engine_that_does_not_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_asr_server.runtime.models.load_engine", lambda name, options: _Broken())
    assert failure(capsys, "--port", "0") == "qwen3-asr-server: The weights are not there."


def test_a_vad_that_does_not_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_asr_server.runtime.services.load_vad", _raise)
    assert failure(capsys, "--port", "0") == "qwen3-asr-server: The weights are not there."


class _Broken:
    """An engine that cannot start."""

    info = load_engine("pocketsphinx", EngineOptions()).info

    async def start(self) -> None:
        _raise()

    async def stop(self) -> None: ...


def _raise() -> Any:
    raise EngineNotReady("The weights are not there.")


# The command doctor


def test_doctor_tries_what_serve_would(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_HOST", "0.0.0.0")
    assert run("doctor", "--port", "0", "--engine", "pocketsphinx") == 0
    lines = capsys.readouterr().out.splitlines()
    said = {topic: [line for line in lines if line.startswith(topic)] for topic in ("package", "engine", "vad", "warn")}
    assert any("onnxruntime 1." in line for line in said["package"])
    assert "pocketsphinx: named by ENGINE" in said["engine"][0]
    assert "silero loads" in said["vad"][0]
    assert any("API_KEYS" in line for line in said["warn"])
    assert any("not for production" in line for line in said["warn"])
    assert any("Context (corpus.text) is taken and has no effect; word times are available." in line for line in lines)
    assert __version__ in lines[0]


def test_doctor_may_be_cut_short_by_its_reader() -> None:
    command = [sys.executable, "-m", "qwen3_asr_server", "doctor", "--engine", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_doctor_warns_of_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run("doctor", "--port", str(taken.getsockname()[1])) == 0
    assert "Address already in use" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--engine", "nonesuch"], []])
def test_doctor_says_what_would_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("qwen3_asr_server.runtime.services.load_vad", _raise)
    assert run("doctor", *arguments) == 1
    assert "FAILED" in capsys.readouterr().out


def test_doctor_says_what_there_is_beside_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--port", "0", "--engine", "pocketsphinx") == 0
    text = capsys.readouterr().out
    for expected in (
        r"extra +demo: dashscope \d",
        r"extra +vllm: (not installed; for Qwen3-ASR on a GPU, and word times|vllm \d)",
        r"media +FFmpeg of PyAV \d[\d.]+ decodes PCM, MP3, AAC, ",
        r"disk +\d+ GB free in /",
        r"data +\d+ GB free for /.+ \(DATA_DIR\)",
        r"aligner +not needed: the engine places words itself",
        r"gpu +\w",
    ):
        assert re.search(f"^{expected}", text, re.MULTILINE), expected


def test_doctor_says_which_weights_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine itself fails at once here, for want of vLLM or of weights: the report has said why by then."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("QWEN3_ASR_MODEL_PATH", str(folder))
    monkeypatch.setenv("RECORDING_FOLDERS", str(tmp_path / "gone"))
    assert run("doctor", "--port", "0", "--engine", "vllm_http") == 1
    text = capsys.readouterr().out
    assert re.search(rf"^missing +{folder} is not on disk", text, re.MULTILINE)
    assert f"{tmp_path}/gone of RECORDING_FOLDERS is no folder that can be read." in text


@pytest.mark.parametrize(("on_disk", "topic"), [(True, "weights"), (False, "missing"), (None, "weights")])
def test_doctor_on_weights(on_disk: bool | None, topic: str) -> None:
    row = _inspection.weights("weights", "Qwen/Qwen3-ASR-0.6B", on_disk)
    assert (row.topic, "download" in row.text) == (topic, on_disk is False)


def test_doctor_warns_of_a_full_disk() -> None:
    found = list(_inspection.disks(2**62, []))
    assert [row.topic for row in found] == ["disk", "warning"]
    assert "MAX_UPLOAD_BYTES" in found[1].text


@pytest.mark.parametrize(("name", "topic"), [("new/folder", "data"), ("", "data"), ("file/folder", "warning")])
def test_doctor_on_the_folder_for_data(tmp_path: Path, name: str, topic: str) -> None:
    (tmp_path / "file").touch()
    row = _inspection.data_folder(tmp_path / name)
    assert (row.topic, "DATA_DIR" in row.text) == (topic, True)
    assert not (tmp_path / "new").exists()


def test_doctor_survives_folders_that_it_may_not_look_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Path.stat

    def stat(path: Path, **options: Any) -> Any:  # a test may run as root
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    (tmp_path / "closed").mkdir()
    assert _inspection.data_folder(tmp_path / "closed" / "data").topic == "data"
    *_, row = _inspection.disks(0, [str(tmp_path / "closed" / "talks")])
    assert "is no folder that can be read" in row.text


def test_doctor_misses_a_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _inspection.metadata, "requires", lambda name: ["no-such-package>=1", 'uvloop>=1; sys_platform == "x"']
    )
    assert run("doctor", "--port", "0") == 1
    assert "no-such-package is not installed" in capsys.readouterr().out


# Weights


class _RepositoryNotFoundError(OSError):
    """As the hub's library calls it."""


_RepositoryNotFoundError.__name__ = "RepositoryNotFoundError"


def with_hub(monkeypatch: pytest.MonkeyPatch, module: str, answer: str | Exception) -> list[str]:
    """Put a library in the place of a hub's own; return what it is asked for."""
    asked: list[str] = []

    def snapshot_download(model: str) -> str:
        asked.append(model)
        if isinstance(answer, Exception):
            raise answer
        return answer

    library = ModuleType(module)
    library.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, library)
    return asked


@pytest.mark.parametrize(
    ("hub", "module", "last"),
    [
        ("huggingface", "huggingface_hub", "Qwen/Qwen3-ASR-0.6B is in /cache/folder"),
        ("ModelScope", "modelscope", "Set QWEN3_ASR_MODEL_PATH=/cache/folder"),
    ],
)
def test_weights_come_from_the_hub_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: str, module: str, last: str
) -> None:
    monkeypatch.setenv("MODEL_HUB", hub)
    asked = with_hub(monkeypatch, module, "/cache/folder")
    assert run("download", "Qwen/Qwen3-ASR-0.6B") == 0
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert run("download") == 0
    assert asked == ["Qwen/Qwen3-ASR-0.6B", "Qwen/Qwen3-ASR-1.7B"]


def test_a_local_folder_is_not_fetched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("download", str(tmp_path)) == 0
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_without_the_library_of_a_hub_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: str
) -> None:
    module = {"huggingface": "huggingface_hub", "modelscope": "modelscope"}[hub]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("MODEL_HUB", hub)
    text = failure(capsys, "download", "Qwen/Qwen3-ASR-0.6B")
    assert f"'{module}', which is not installed" in text


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (_RepositoryNotFoundError("404 https://hub/…"), "has no such model"),
        (ConnectionRefusedError(111, "refused"), "cannot be reached"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("secret"), "RuntimeError"),
    ],
)
def test_a_download_that_fails_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: Exception, reason: str
) -> None:
    with_hub(monkeypatch, "huggingface_hub", problem)
    text = failure(capsys, "download", "Qwen/Qwen3-ASR-0.6B")
    assert text.startswith("qwen3-asr-server: Qwen/Qwen3-ASR-0.6B could not be fetched: ")
    assert reason in text
    assert "secret" not in text
