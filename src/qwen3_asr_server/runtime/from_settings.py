"""What the settings mean for each part of the runtime: its engines, its options and its limits.

Only copies and counts; decides nothing while the server runs. Beside `services`, the only part of the runtime that
reads the settings, so that no other has to change with them. Called by `services`, and for limits by `_app` and `cli`.
"""

import logging
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from qwen3_asr_server.config import READERS, Settings
from qwen3_asr_server.domain import EngineInfo
from qwen3_asr_server.engines import choose_engine
from qwen3_asr_server.engines._aligner_memory import ALIGNER_BYTES
from qwen3_asr_server.engines._base import Engine, EngineOptions
from qwen3_asr_server.runtime._download import WebLimits
from qwen3_asr_server.runtime.jobs import JobsOptions
from qwen3_asr_server.runtime.live import LiveOptions
from qwen3_asr_server.runtime.media import MediaLimits
from qwen3_asr_server.runtime.models import build_engines, named_paths
from qwen3_asr_server.runtime.scheduler import SchedulerOptions
from qwen3_asr_server.runtime.sources import SourceLimits
from qwen3_asr_server.runtime.uploads import UploadFolder
from qwen3_asr_server.session.options import SessionOptions

_log = logging.getLogger(__name__)

_BATCHED_STEPS: Final = 32
"""Steps at once, of each sort, on an engine that batches them."""
_BATCHED_RECORDED: Final = 16
"""Pieces of recordings at once on such an engine."""
_DECODERS_RECORDED: Final = 2
"""Pieces of recordings at once on an engine with a fixed number of streams, never more than half of these."""


def engines_of(settings: Settings) -> dict[str, Engine]:
    """Return an engine for each model, by the models' names, the default first; none is loaded yet.

    Raises:
        EngineNotReady: the named engine does not exist or cannot be imported.
    """
    options = EngineOptions(
        model_path=settings.qwen3_asr_model_path,
        dtype=settings.model_dtype,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_new_tokens=settings.max_new_tokens,
        decode_timeout_s=settings.decode_timeout_s,
        queue_timeout_s=settings.queue_timeout_s,
        longest_interval_s=settings.streaming_chunk_size_sec,
        kv_cache_bytes=round(settings.kv_cache_gb * 2**30) or None,
        reserved_bytes=ALIGNER_BYTES if settings.word_times else 0,
        max_decoders=settings.pocketsphinx_decoders,
        server_urls=settings.vllm_urls,
        server_key=settings.vllm_api_key.get_secret_value(),
        connect_timeout_s=settings.vllm_connect_timeout_s,
    )
    choice = choose_engine(settings.engine, options)
    _log.info("engine chosen", extra={"engine": choice.name, "reason": choice.reason})
    others = settings.qwen3_asr_other_models if choice.name in READERS["qwen3_asr_other_models"] else ()
    return build_engines(choice.name, options, named_paths(settings.qwen3_asr_model_path, others))


def scheduler_options(settings: Settings, info: EngineInfo) -> SchedulerOptions:
    """Return how many steps an engine may be given at once, and how long they may take."""
    steps = _steps_at_once(info)
    return SchedulerOptions(
        max_partials=steps,
        max_urgent=steps,
        max_recorded=_recorded_at_once(info),
        longest_interval_s=settings.streaming_chunk_size_sec,
        step_timeout_s=settings.decode_timeout_s + settings.queue_timeout_s,
        queue_timeout_s=settings.queue_timeout_s,
    )


def session_options(settings: Settings, default_language: str, *, align_words: bool) -> SessionOptions:
    """Return the rules of a session, live or recorded.

    Args:
        settings: of the server.
        default_language: of the model, wire code.
        align_words: whether an aligner places its words.
    """
    return SessionOptions(
        default_language=default_language,
        max_utterance_s=settings.max_utterance_s,
        manual_max_s=settings.manual_max_s,
        idle_timeout_s=settings.idle_timeout_s,
        finish_timeout_s=settings.finish_timeout_s,
        align_words=align_words,
    )


def live_options(settings: Settings, session: SessionOptions) -> LiveOptions:
    """Return the limits of a live session, with its rules."""
    return LiveOptions(
        session,
        max_append_s=settings.max_append_s,
        buffer_high_s=settings.buffer_high_s,
        buffer_low_s=settings.buffer_low_s,
        log_transcripts=settings.log_transcripts,
    )


def media_limits(settings: Settings) -> MediaLimits:
    """Return what one recording may cost."""
    return MediaLimits(max_bytes=settings.max_upload_bytes, max_audio_s=settings.max_recording_s)


def source_limits(settings: Settings) -> SourceLimits:
    """Return what fetching a recording may cost, and where it may come from."""
    networks = tuple(ip_network(network) for network in settings.fetch_trusted_networks)
    return SourceLimits(
        max_bytes=settings.max_upload_bytes,
        web=WebLimits(total_s=settings.fetch_timeout_s, trusted_networks=networks),
        roots=tuple(Path(folder) for folder in settings.recording_folders),
        uploads=upload_folder(settings),
    )


def upload_folder(settings: Settings) -> UploadFolder:
    """Return where uploads are kept, and how long."""
    return UploadFolder(settings.data_folder / "uploads", settings.keep_files_h * 3600)


def jobs_options(settings: Settings) -> JobsOptions:
    """Return where jobs are kept, and their bounds: they leave half of the places to those who wait.

    Where several keys share the queue, none can fill it alone.
    """
    shared = len({key.get_secret_value() for key in settings.api_keys}) > 1
    return JobsOptions(
        folder=settings.data_folder / "jobs",
        keep_s=settings.keep_files_h * 3600,
        max_files=settings.max_job_files,
        max_files_of_owner=max(1, settings.max_job_files // 2) if shared else None,
        at_once=max(1, settings.max_recordings // 2),
    )


def _steps_at_once(info: EngineInfo) -> int:
    """Return how many partials, and how many finals, may run side by side.

    An engine with a fixed number of streams works on the processor: more steps than cores would only make each
    slower, and its deadline counts while it works.
    """
    return _BATCHED_STEPS if info.max_streams is None else min(info.max_streams, os.cpu_count() or 1)


def _recorded_at_once(info: EngineInfo) -> int:
    """Return how many pieces of recordings may run side by side while nobody speaks."""
    if info.max_streams is None:
        return _BATCHED_RECORDED
    return max(1, min(_DECODERS_RECORDED, info.max_streams // 2))
