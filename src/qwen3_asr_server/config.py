"""Settings: the only reader of the environment and of `.env`.

Every field's docstring says what it means, its unit and its range; `.env.example` and
`docs/configuration.md` are generated from them (`scripts/generate.py`). Lower layers never see this
class: they get small option objects made here.
"""

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CommaList = Annotated[list[str], NoDecode]

READERS: Final = {
    "qwen3_asr_model_path": ("vllm", "vllm_http", "transformers", "qwen_asr"),
    "qwen3_asr_other_models": ("vllm", "transformers", "qwen_asr"),
    "gpu_memory_utilization": ("vllm",),
    "kv_cache_gb": ("vllm",),
    "max_new_tokens": ("vllm", "vllm_http", "transformers", "qwen_asr"),
    "model_dtype": ("vllm", "vllm_http", "transformers", "qwen_asr"),
    "vllm_urls": ("vllm_http",),
    "vllm_api_key": ("vllm_http",),
    "vllm_connect_timeout_s": ("vllm_http",),
    "pocketsphinx_decoders": ("pocketsphinx",),
}
"""Settings that only some engines read. `warnings` knows by it what was set in vain."""


class Settings(BaseSettings):
    """All settings of the server. Names in the environment are the field names in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", use_attribute_docstrings=True, frozen=True
    )

    # Server
    server_host: str = "0.0.0.0"
    """Address to listen on. Beyond loopback, set API_KEYS."""
    server_port: int = Field(8001, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much to log."""
    log_format: Literal["json", "console"] = "console"
    """`json` writes one object a line, `console` is for people."""
    log_transcripts: bool = False
    """Write transcripts to the log. Off: neither text nor audio ever reaches it."""

    # Recognition
    engine: str = "auto"
    """Which recogniser runs: `auto`, or the name of one (`pocketsphinx`, …). `auto` takes the best that can run
    here; a named one that cannot start ends the process with the reason."""
    model_loading: Literal["eager", "lazy"] = "eager"
    """`eager` loads at start, before the server is ready; `lazy` when the first client connects."""
    idle_unload_s: float = Field(600, ge=0)
    """With MODEL_LOADING=lazy: an engine that no session has used for this long is unloaded, and loaded again for the
    next client; in seconds, 0 keeps it."""
    qwen3_asr_model_path: str = "Qwen/Qwen3-ASR-1.7B"
    """Hub name or local folder of the Qwen3-ASR weights; `vllm_http` needs the tokenizer only. Read by the engine
    `vllm`, `vllm_http`, `transformers`, `qwen_asr` only."""
    qwen3_asr_other_models: CommaList = []
    """Further weights that clients may ask for with `?model=`, comma-separated: hub names, folders, or `name=folder`.
    One model is loaded at a time; a switch waits until no session uses the other. Read by the engine
    `vllm`, `transformers`, `qwen_asr` only."""
    model_hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where `qwen3-asr-server download` fetches weights from."""
    word_times: bool = False
    """Load the forced aligner too, so that clients can ask for the times of words (`words`). It needs vLLM. With an
    engine that gives word times itself, like `pocketsphinx`, it is not needed and not loaded."""
    aligner_model_path: str = "Qwen/Qwen3-ForcedAligner-0.6B"
    """Hub name or local folder of the forced aligner's weights. Read with WORD_TIMES only."""
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1)
    """Share of the GPU's memory that the engine may use, with WORD_TIMES together with the aligner. Read by the
    engine `vllm` only."""
    kv_cache_gb: float = Field(0, ge=0)
    """Memory for the KV cache, in GB of 2³⁰ bytes; 0 leaves it to GPU_MEMORY_UTILIZATION. Sessions are admitted as far
    as what they need fits in 60 % of it. Read by the engine `vllm` only."""
    max_new_tokens: int = Field(32, ge=1, le=4096)
    """New tokens in one partial step. Finals may use more. Read by the engine `vllm`, `vllm_http`, `transformers`,
    `qwen_asr` only."""
    model_dtype: Literal["auto", "half", "float"] = "auto"
    """Number format of the weights; `auto` keeps that of the checkpoint. `half` cannot hold all values of bf16
    weights. Read by the engine `vllm`, `vllm_http`, `transformers`, `qwen_asr` only."""
    vllm_urls: CommaList = []
    """Where `vllm serve` runs: `http://gpu1:8000,http://gpu2:8000`, comma-separated, on a network that only you
    reach. Read by the engine `vllm_http` only."""
    vllm_api_key: SecretStr = SecretStr("")
    """The `--api-key` of those servers, if they have one. Read by the engine `vllm_http` only."""
    vllm_connect_timeout_s: float = Field(2, gt=0)
    """A server that takes no connection, or does not say that it is well, for this long counts as dead, in
    seconds. Read by the engine `vllm_http` only."""
    streaming_chunk_size_sec: float = Field(2.0, ge=0.4, le=30)
    """Longest interval between two partials of a speaking session that the server promises, in seconds. With
    every engine; a busy one takes new sessions only while it can keep it."""
    pocketsphinx_decoders: int = Field(4, ge=1, le=64)
    """Incremental decoders, about 100 MB each; one process each, started when needed. Read by the engine
    `pocketsphinx` only."""

    # Endpointing
    vad_enabled: bool = True
    """Sessions begin in VAD mode. Off: they begin in Manual mode; a client may still ask for VAD."""
    vad_threshold: float = Field(0.5, gt=0.05, lt=0.95)
    """Speech probability that the wire's default sensitivity (0.2) stands for. The wire's -1 stands for 0.05
    and 1 for 0.95, linear between."""
    vad_silence_duration_ms: int = Field(400, ge=200, le=6000)
    """Silence that ends an utterance on the web page. DashScope sessions begin with the vendor's 800 ms."""

    # Who may come in
    api_keys: Annotated[list[SecretStr], NoDecode] = []
    """Accepted keys, comma-separated. Empty: everyone may connect; commas without a key are refused."""
    allowed_origins: CommaList = []
    """Pages that may connect besides those served by this host: `https://app.example.com`, comma-separated;
    `*` allows all."""
    max_sessions: int = Field(128, ge=1)
    """Realtime sessions at once; more are told to come back later."""
    max_sessions_per_key: int = Field(0, ge=0)
    """Realtime sessions at once for one key; 0 means no separate limit."""
    max_recordings: int = Field(16, ge=1)
    """Recordings transcribed at once; more are told to come back later. They share what live sessions leave."""
    ticket_ttl_s: float = Field(60, gt=0)
    """How long a browser's one-use ticket is good for, in seconds."""

    # Limits
    max_message_bytes: int = Field(24 * 1024 * 1024, ge=1024)
    """Longest WebSocket message, and longest request in JSON: both are held in memory. A legal append is 15 MiB of
    audio, 20 MiB of base64."""
    max_append_bytes: int = Field(15 * 1024 * 1024, ge=1024)
    """Most audio bytes in one append, before base64."""
    max_append_s: float = Field(1200, gt=0)
    """Most audio in one append once decoded, in seconds."""
    max_utterance_s: float = Field(60, ge=5)
    """VAD mode: an utterance is cut at the quietest place when it gets this long, in seconds."""
    manual_max_s: float = Field(3600, ge=1)
    """Manual mode: most audio in one item, in seconds."""
    buffer_high_s: float = Field(60, gt=0)
    """Unheard audio above which the server stops reading from a session, in seconds."""
    buffer_low_s: float = Field(30, ge=28)
    """Unheard audio below which it reads again, in seconds."""
    idle_timeout_s: float = Field(600, gt=0)
    """A session whose client sends nothing for this long is closed, in seconds."""
    finish_timeout_s: float = Field(30, gt=0)
    """After session.finish: longest wait without any progress before open items fail, in seconds."""
    finish_grace_s: float = Field(10, ge=0)
    """After session.finished: how long the socket stays open for the client to close it, in seconds."""
    decode_timeout_s: float = Field(3, gt=0)
    """Longest decode, in seconds, besides half of its audio's length."""
    queue_timeout_s: float = Field(60, gt=0)
    """Longest wait of a final for its turn, in seconds."""
    send_timeout_s: float = Field(10, gt=0)
    """A client that takes no message for this long is closed, in seconds."""
    outbox_messages: int = Field(256, ge=8)
    """Messages waiting for a slow client before it is closed."""
    ping_interval_s: float = Field(20, gt=0)
    """Interval of the server's pings, in seconds. A missing pong closes nothing."""
    shutdown_timeout_s: float = Field(20, gt=0)
    """On SIGTERM: how long live sessions may take to get their finals, in seconds."""

    # Recordings
    max_upload_bytes: int = Field(2 * 1024**3, ge=1024)
    """Largest recording, whether sent, fetched or read from a folder of this machine, in bytes."""
    max_recording_s: float = Field(43200, gt=0)
    """Longest recording, in seconds."""
    fetch_trusted_networks: CommaList = []
    """Networks that recordings are fetched from (`http://…`) although they are not public: `10.1.0.0/16,127.0.0.1`,
    comma-separated. All other private, loopback, link-local and reserved addresses are refused."""
    fetch_timeout_s: float = Field(1800, gt=0)
    """Longest download of a recording, in seconds."""
    recording_folders: CommaList = []
    """Folders of this machine that clients may name recordings in, absolute and comma-separated. Links below them
    are not followed. Empty: clients can name none."""
    sync_max_bytes: int = Field(10 * 1024**2, ge=1024)
    """Largest recording of DashScope's synchronous call, in bytes: the vendor's limit. As a data URL it must fit into
    MAX_MESSAGE_BYTES too."""
    sync_max_s: float = Field(300, gt=0)
    """Longest recording of DashScope's synchronous call, in seconds: the vendor's limit."""
    data_dir: str = ""
    """Folder for what outlives a request: files that DashScope's SDK uploads, jobs and their results. Made when it is
    needed, for its owner only. Empty: `qwen3-asr-server` in XDG_STATE_HOME, or in `~/.local/state` without that,
    or in `/var/lib` for a user without a home."""
    keep_files_h: float = Field(24, gt=0)
    """How long files in DATA_DIR are kept, in hours."""
    max_job_files: int = Field(1000, ge=1)
    """Files of jobs that wait or are transcribed; jobs beyond that are refused. Half of MAX_RECORDINGS at once.
    Where API_KEYS has several, half of it for each key."""
    max_stored_bytes: int = Field(20 * 1024**3, ge=1024)
    """Most that uploaded files in DATA_DIR may take together, in bytes; more are refused until some are removed."""

    dashscope_api_key: SecretStr = SecretStr("")
    """Key that `qwen3-asr-server transcribe --url` sends; the vendor's SDK reads the same variable. The server itself
    does not use it."""

    # Wire
    emotion: str = "neutral"
    """What to answer where the protocol wants an emotion; the open weights give none. Empty leaves it out."""
    max_errors: int = Field(100, ge=1)
    """Client errors in a row after which a connection is closed."""

    @property
    def data_folder(self) -> Path:
        """DATA_DIR, or where it is by default; need not exist yet."""
        if self.data_dir:
            return Path(self.data_dir).expanduser().absolute()
        state = os.environ.get("XDG_STATE_HOME", "")
        if not state.startswith("/"):
            home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for a user who has none
            state = os.path.join(home, ".local", "state") if home.startswith("/") else "/var/lib"  # noqa: PTH118
        return Path(state) / "qwen3-asr-server"

    def warnings(self, engine: str | None = None) -> list[str]:
        """Return what an operator should think over, above all before strangers can reach this server.

        Args:
            engine: name of the one that runs; None leaves out what depends on it.
        """
        found = list(self.engine_warnings(engine)) if engine else []
        if not self.api_keys and not _is_loopback(self.server_host):
            found.append(
                f"Everyone who reaches {self.server_host}:{self.server_port} may use this server: "
                "API_KEYS is empty. Set it, or SERVER_HOST=127.0.0.1."
            )
        if "/" in self.recording_folders:
            found.append("RECORDING_FOLDERS=/ lets clients have every file of this machine transcribed.")
        if "*" in self.allowed_origins:
            found.append("ALLOWED_ORIGINS=* lets every web page that a user opens talk to this server.")
        if self.log_transcripts:
            found.append("LOG_TRANSCRIPTS is on: what people say is written to the log.")
        return found

    def engine_warnings(self, engine: str) -> Iterator[str]:
        """Yield what is set in vain, or unwisely, with this engine."""
        # Settings that still have their default may come from a copy of .env.example: nobody meant them.
        fields, known = type(self).model_fields, {reader for readers in READERS.values() for reader in readers}
        changed = [name for name in READERS if getattr(self, name) != fields[name].default]
        ignored = [name.upper() for name in changed if engine in known and engine not in READERS[name]]
        if ignored:
            yield f"Without effect, as the engine {engine} does not read it: {', '.join(ignored)}."
        if self.model_dtype == "half" and engine in READERS["model_dtype"]:
            yield "MODEL_DTYPE=half cannot hold all values of weights in bf16, which may spoil the text. Use auto."

    @field_validator(
        "api_keys",
        "allowed_origins",
        "vllm_urls",
        "qwen3_asr_other_models",
        "fetch_trusted_networks",
        "recording_folders",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object, field: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if value and not parts and field.field_name == "api_keys":
            raise ValueError("names no key; leave it empty to let everyone connect")
        return parts

    @field_validator("vllm_urls", mode="after")
    @classmethod
    def _servers(cls, value: list[str]) -> list[str]:
        if not all(map(_is_server, value)):
            raise ValueError("each is http:// or https:// with a host, and without a key: that is VLLM_API_KEY")
        found = [url.rstrip("/") for url in value]
        if len(set(found)) < len(found):
            raise ValueError("names a server twice")
        return found

    @field_validator("fetch_trusted_networks", mode="after")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        return [str(ipaddress.ip_network(network)) for network in value]

    @field_validator("recording_folders", mode="after")
    @classmethod
    def _absolute(cls, value: list[str]) -> list[str]:
        if not all(folder.startswith("/") and ".." not in folder.split("/") for folder in value):
            raise ValueError("each is an absolute path without `..`")
        return value

    @field_validator("data_dir", mode="after")
    @classmethod
    def _has_home(cls, value: str) -> str:
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise ValueError("`~` stands for the home of a user who has none") from None
        return value

    @field_validator("log_level", "log_format", "model_loading", "model_dtype", "model_hub", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("server_host", "engine", mode="after")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.strip()

    @model_validator(mode="after")
    def _marks_in_order(self) -> Self:
        if self.buffer_low_s > self.buffer_high_s:
            raise ValueError("BUFFER_LOW_S must not be above BUFFER_HIGH_S")
        return self


def explain(error: ValidationError) -> str:
    """Return in one line which settings are wrong and why, without their values: one may be a key."""
    problems = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(detail["loc"][0]).upper() if detail["loc"] else ""
        reason = detail["msg"].removeprefix("Value error, ")
        problems.append(f"{name}: {reason}" if name else reason)
    return "; ".join(problems)


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not set("@?#") & set(url)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
