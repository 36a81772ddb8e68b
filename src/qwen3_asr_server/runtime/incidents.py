"""Faults of ours: the log has the trace, the client an id by which to find it there.

Called at the boundaries at which such a fault may end one session, recording or step, and nothing else.
"""

import logging
import uuid

from qwen3_asr_server.errors import InternalError


def incident(log: logging.Logger, message: str) -> str:
    """Log the exception that is being handled, and return the id of the entry.

    Args:
        log: of the module at whose boundary it arrived.
        message: what has failed.
    """
    error_id = uuid.uuid4().hex
    log.exception(message, extra={"error_id": error_id})
    return error_id


def internal_error(log: logging.Logger, message: str) -> InternalError:
    """Do the same, and return what the client is told."""
    return InternalError(f"Internal error {incident(log, message)}.")
