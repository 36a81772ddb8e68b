"""Settings: defaults, sources, ranges, warnings, and the files generated from them."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from qwen3_asr_server.config import READERS, Settings, explain

ROOT = Path(__file__).resolve().parents[2]

SEEDS = {
    "SERVER_HOST": "0.0.0.0",
    "SERVER_PORT": "8001",
    "QWEN3_ASR_MODEL_PATH": "Qwen/Qwen3-ASR-1.7B",
    "GPU_MEMORY_UTILIZATION": "0.5",
    "MAX_NEW_TOKENS": "32",
    "MODEL_DTYPE": "auto",
    "VAD_ENABLED": "true",
    "VAD_THRESHOLD": "0.5",
    "VAD_SILENCE_DURATION_MS": "400",
    "STREAMING_CHUNK_SIZE_SEC": "2.0",
    "LOG_LEVEL": "info",
}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_environment_wins_over_the_file_and_arguments_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SERVER_PORT=1\nMAX_SESSIONS=1\nMAX_ERRORS=1\n")
    monkeypatch.setenv("SERVER_PORT", "2")
    monkeypatch.setenv("MAX_SESSIONS", "2")
    settings = Settings(server_port=3)
    assert (settings.server_port, settings.max_sessions, settings.max_errors) == (3, 2, 1)


@pytest.mark.parametrize(
    ("written", "read"),
    [("", []), ("one", ["one"]), (" one , two,, ", ["one", "two"])],
)
def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, written: str, read: list[str]) -> None:
    monkeypatch.setenv("API_KEYS", written)
    monkeypatch.setenv("ALLOWED_ORIGINS", written)
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == read
    assert settings.allowed_origins == read


def test_keys_are_not_shown() -> None:
    assert "hush" not in repr(Settings(api_keys="hush"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER_PORT", "65536"),
        ("SERVER_PORT", "http"),
        ("SERVER_HOST", " "),
        ("ENGINE", ""),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("MODEL_DTYPE", "int8"),
        ("GPU_MEMORY_UTILIZATION", "0"),
        ("GPU_MEMORY_UTILIZATION", "1.1"),
        ("MAX_NEW_TOKENS", "0"),
        ("STREAMING_CHUNK_SIZE_SEC", "0.3"),
        ("VAD_THRESHOLD", "0.05"),
        ("VAD_SILENCE_DURATION_MS", "199"),
        ("VAD_SILENCE_DURATION_MS", "6001"),
        ("MAX_SESSIONS", "0"),
        ("MAX_MESSAGE_BYTES", "1023"),
        ("TICKET_TTL_S", "0"),
        ("SHUTDOWN_TIMEOUT_S", "0"),
        ("PING_INTERVAL_S", "0"),
        ("MAX_UTTERANCE_S", "4"),
        ("VLLM_URLS", "gpu1:8000"),
        ("VLLM_URLS", "http://"),
        ("VLLM_URLS", "http://gpu1:http"),
        ("VLLM_URLS", "http://key@gpu1:8000"),
        ("VLLM_URLS", "http://gpu1:8000?key=1"),
        ("VLLM_URLS", "http://gpu1:8000,http://gpu1:8000/"),
        ("VLLM_CONNECT_TIMEOUT_S", "0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert explain(caught.value).startswith(f"{name}: ")


def test_vllm_servers_are_listed_without_their_last_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_URLS", "http://gpu1:8000/, https://[::1]/gpu2")
    assert Settings().vllm_urls == ["http://gpu1:8000", "https://[::1]/gpu2"]


def test_an_explanation_shows_every_problem_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_PORT", "s3cret")
    monkeypatch.setenv("MAX_SESSIONS", "s3cret")
    with pytest.raises(ValidationError) as caught:
        Settings()
    text = explain(caught.value)
    assert "SERVER_PORT" in text
    assert "MAX_SESSIONS" in text
    assert "s3cret" not in text
    assert "\n" not in text


def test_the_low_mark_may_not_be_above_the_high_mark() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(buffer_high_s=40, buffer_low_s=41)
    assert explain(caught.value) == "BUFFER_LOW_S must not be above BUFFER_HIGH_S"


@pytest.mark.parametrize(("name", "value"), [("LOG_LEVEL", "INFO"), ("MODEL_DTYPE", "Half"), ("LOG_FORMAT", "JSON")])
def test_names_of_choices_may_be_in_capitals(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(Settings(), name.lower()) == value.lower()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"server_host": "127.0.0.1"}, []),
        ({"server_host": "localhost"}, []),
        ({"server_host": "::1"}, []),
        ({"server_host": "0.0.0.0", "api_keys": "k"}, []),
        ({"server_host": "0.0.0.0"}, ["API_KEYS"]),
        ({"server_host": "::"}, ["API_KEYS"]),
        ({"server_host": "asr.example.com"}, ["API_KEYS"]),
        ({"server_host": "::1", "allowed_origins": "*"}, ["ALLOWED_ORIGINS"]),
        ({"server_host": "::1", "log_transcripts": True}, ["LOG_TRANSCRIPTS"]),
    ],
)
def test_warnings(settings: dict[str, object], words: list[str]) -> None:
    warnings = Settings(**settings).warnings()  # type: ignore[arg-type]
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


@pytest.mark.parametrize("written", [" ", ",", ", ,"])
def test_keys_that_are_none_do_not_open_the_door(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("API_KEYS", written)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert explain(caught.value) == "API_KEYS: names no key; leave it empty to let everyone connect"


@pytest.mark.parametrize(
    ("settings", "engine", "words"),
    [
        ({}, "pocketsphinx", None),
        ({"qwen3_asr_model_path": "Qwen/Qwen3-ASR-1.7B"}, "pocketsphinx", None),
        ({"qwen3_asr_model_path": "x", "max_new_tokens": 7}, "pocketsphinx", "QWEN3_ASR_MODEL_PATH, MAX_NEW_TOKENS."),
        ({"gpu_memory_utilization": 0.9, "model_dtype": "half"}, "pocketsphinx", "GPU_MEMORY_UTILIZATION, MODEL_DTYPE"),
        ({"pocketsphinx_decoders": 2, "streaming_chunk_size_sec": 1}, "pocketsphinx", None),
        ({"pocketsphinx_decoders": 2}, "vllm", "the engine vllm does not read it: POCKETSPHINX_DECODERS."),
        ({"qwen3_asr_model_path": "x", "model_dtype": "float"}, "vllm", None),
        ({"model_dtype": "half"}, "vllm", "MODEL_DTYPE=half cannot hold all values"),
        ({"max_new_tokens": 7, "model_dtype": "half"}, "of_another_package", None),
    ],
)
def test_settings_that_the_engine_ignores_or_that_harm_it(
    settings: dict[str, object], engine: str, words: str | None
) -> None:
    chosen = Settings(server_host="::1", **settings)  # type: ignore[arg-type]
    warnings = chosen.warnings(engine)
    assert len(warnings) == (words is not None)
    assert all(words in warning for warning in warnings if words)
    assert chosen.warnings() == []


def test_every_setting_says_which_engines_read_it() -> None:
    for name, engines in READERS.items():
        description = " ".join((Settings.model_fields[name].description or "").split())
        assert f"Read by the engine `{'`, `'.join(engines)}` only." in description


def test_the_example_file_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    named = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert named.items() >= SEEDS.items()
    assert {name.lower() for name in named} == set(Settings.model_fields)
    (tmp_path / ".env").write_text(text, "utf-8")
    assert Settings() == Settings(_env_file=None)


def test_generated_files_are_fresh() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "generate.py", "--check"], check=True, timeout=60)


def test_a_stale_file_is_noticed(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import generate; from pathlib import Path\n"
        "generate.ROOT = Path(sys.argv[2]); (generate.ROOT / 'docs').mkdir(); sys.argv[1:] = ['--check']\n"
        "sys.exit(generate.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, ROOT / "scripts", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "stale: .env.example" in result.stderr
    assert not (tmp_path / ".env.example").exists()


def test_networks_to_fetch_from_are_networks() -> None:
    settings = Settings(fetch_trusted_networks="127.0.0.1, 10.1.0.0/16,fd00::/8")  # type: ignore[arg-type]
    assert settings.fetch_trusted_networks == ["127.0.0.1/32", "10.1.0.0/16", "fd00::/8"]
    with pytest.raises(ValidationError):
        Settings(fetch_trusted_networks=["example.com"])


@pytest.mark.parametrize(
    ("state", "home", "folder"),
    [
        ("/state", "~", "/state/qwen3-asr-server"),
        ("", "/me", "/me/.local/state/qwen3-asr-server"),
        ("relative", "/", "/.local/state/qwen3-asr-server"),
        ("", "~", "/var/lib/qwen3-asr-server"),
    ],
)
def test_where_data_lies_by_default(monkeypatch: pytest.MonkeyPatch, state: str, home: str, folder: str) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", home)  # "~" is what the system answers for a user without a home
    assert str(Settings().data_folder) == folder


def test_a_home_that_nobody_has_is_refused() -> None:
    with pytest.raises(ValidationError, match="home of a user"):
        Settings(data_dir="~no-such-user/data")


@pytest.mark.parametrize("folder", ["recordings", "./recordings", "/data/../etc", "~/recordings"])
def test_folders_of_recordings_are_absolute(folder: str) -> None:
    assert Settings(recording_folders="/data,/srv/calls").recording_folders == ["/data", "/srv/calls"]  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Settings(recording_folders=[folder])


def test_the_whole_machine_as_recordings_is_worth_a_warning() -> None:
    assert any("RECORDING_FOLDERS" in warning for warning in Settings(recording_folders=["/"]).warnings())
    assert not any("RECORDING_FOLDERS" in warning for warning in Settings(recording_folders=["/data"]).warnings())
