"""One decode step and the end of a stream: deadlines on them, and every failure made a value.

Whatever an engine does, a step ends in an `Outcome`, and what clients may see of an unforeseen failure is an
id that the log repeats. Knows no queues and no sessions; the step scheduler is its only caller.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE, StepKind
from qwen3_asr_server.engines._base import Engine, EngineStream
from qwen3_asr_server.errors import AsrServerError, EngineCrashed, EngineTimeout
from qwen3_asr_server.messages import Decode, DecodeFailed, Heard, Outcome, Skipped
from qwen3_asr_server.runtime.incidents import incident

_log = logging.getLogger(__name__)

_DEADLINE_PER_AUDIO: Final = 0.5


def open_stream(engine: Engine, decode: Decode, session: int) -> EngineStream | DecodeFailed:
    """Begin the piece of a decode of a session, which has this number; pieces of a recording go anywhere."""
    options = decode.options
    try:
        return engine.open_stream(options if options.recorded else replace(options, session=session))
    except AsrServerError as error:
        return _failed(decode, error)
    except Exception:  # noqa: BLE001 - the boundary to engines
        return _failed(decode, _crash("a stream could not be opened"))


async def perform_step(stream: EngineStream, decode: Decode, timeout_s: float) -> Outcome:
    """Run a decode.

    Args:
        stream: of the decode's piece.
        decode: what to hear.
        timeout_s: deadline besides half of the audio's length.
    """
    try:
        async with asyncio.timeout(timeout_s + _DEADLINE_PER_AUDIO * len(decode.audio) / SAMPLE_RATE):
            hypothesis = await stream.step(decode.audio, decode.kind)
    except TimeoutError:
        return _failed(decode, EngineTimeout("Recognition took too long."))
    except AsrServerError as error:
        return _failed(decode, error)
    except Exception:  # noqa: BLE001 - the boundary to engines; whatever they raise fails one utterance
        return _failed(decode, _crash("a decode failed"))
    if hypothesis is not None:
        return Heard(decode.piece, decode.kind, decode.upto, hypothesis)
    if decode.kind is not StepKind.FINAL:
        return Skipped(decode.piece, decode.kind)
    return _failed(decode, EngineCrashed("The recogniser gave no answer."))


def leaves_stream_usable(outcome: Outcome) -> bool:
    """Tell whether the stream may be asked again; when a step was cut off, nobody knows what it has heard."""
    return not (isinstance(outcome, DecodeFailed) and isinstance(outcome.error, EngineTimeout | EngineCrashed))


async def close_stream(stream: EngineStream, timeout_s: float) -> None:
    """Close a stream; failures are logged, as nobody waits for it any more."""
    try:
        async with asyncio.timeout(timeout_s):
            await stream.close()
    except Exception:  # noqa: BLE001 - the boundary to engines
        _log.exception("closing a stream failed")


def _failed(decode: Decode, error: AsrServerError) -> DecodeFailed:
    return DecodeFailed(decode.piece, decode.kind, error)


def _crash(message: str) -> EngineCrashed:
    return EngineCrashed(f"Recognition failed ({incident(_log, message)}).")
