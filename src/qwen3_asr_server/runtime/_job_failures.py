"""Why a file of a job has no transcript: our errors in the words in which jobs keep them.

Known to `jobs` and to what works on files; a door maps these words onto its codes.
"""

from qwen3_asr_server.errors import (
    AsrServerError,
    ClientError,
    EngineError,
    MediaError,
    SourceRefused,
    SourceUnreachable,
    TooLarge,
    TooLong,
)
from qwen3_asr_server.runtime.job_values import Failure


class NobodySpeaks(MediaError):
    """There is no speech in the file."""


class NoWords(MediaError):
    """There is speech in the file, but no word was recognised."""


def failure_of(error: AsrServerError) -> Failure:
    """Return why there is no transcript."""
    match error:
        case SourceUnreachable(status=404 | 410):
            return Failure.MISSING
        case SourceUnreachable(status=401 | 403):
            return Failure.FORBIDDEN
        case SourceUnreachable():
            return Failure.UNREACHABLE
        case SourceRefused():
            return Failure.REFUSED
        case TooLong():
            return Failure.TOO_LONG
        case TooLarge():
            return Failure.TOO_LARGE
        case NobodySpeaks():
            return Failure.SILENT
        case NoWords():
            return Failure.WORDLESS
        case MediaError():
            return Failure.UNREADABLE
        case ClientError():
            return Failure.UNSUITABLE
        case EngineError():
            return Failure.ENGINE
        case _:
            return Failure.INTERNAL
