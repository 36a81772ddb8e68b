"""The errors of the server, and which of them a peer can mend.

    AsrServerError
    ├── ClientError              the peer can mend it
    │   ├── InvalidEvent         not JSON, no type, unknown type, a field of the wrong type
    │   ├── InvalidValue         a known field with a value that is not supported
    │   ├── InvalidAudio         audio that cannot be read, or too much of it
    │   ├── EmptyCommit          a commit with nothing to recognise, or in VAD mode
    │   ├── UnknownModel
    │   ├── Unauthorized
    │   ├── Forbidden            a page from an origin that is not allowed
    │   ├── TooLarge             a message or upload over its limit
    │   │   └── TooLong          more audio in a file than its limit
    │   ├── MediaError           a file that cannot be read: empty, no audio, unknown format, damaged
    │   ├── SourceRefused        an address or a path that this server does not read from
    │   └── SourceUnreachable    an address or a path with nothing to read, or not in time
    ├── Overloaded               come back later
    │   └── ShuttingDown         the server is going away
    ├── IdleTimeout              the peer has been silent for too long
    ├── EngineError              recognition failed; the session lives
    │   ├── EngineNotReady
    │   ├── EngineTimeout
    │   └── EngineCrashed
    └── InternalError            anything else: the peer gets an id, the log has the trace

Messages are shown to clients: no path, no key, no trace in them. How an error looks on the wire is
decided in each protocol's own file.
"""

from typing import ClassVar


def located(message: str, param: str | None) -> str:
    """Return a message with the field ahead of it, unless it names it: for forms without another place for the field.

    Args:
        message: as in `AsrServerError`.
        param: as in `AsrServerError`.
    """
    return message if param is None or param in message else f"{param}: {message}"


class AsrServerError(Exception):
    """Base of all errors here. Raise one of the subclasses.

    Args:
        message: safe to show to a client.
        param: the field at fault, as the client named it (`session.input_audio_format`).
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        if type(self) is AsrServerError:
            raise TypeError("raise a subclass of AsrServerError")
        super().__init__(message)
        self.message = message
        self.param = param


class ClientError(AsrServerError):
    """The peer can mend it."""


class InvalidEvent(ClientError):
    """The message is not an event that this protocol knows."""


class InvalidValue(ClientError):
    """A field has a value that is not supported."""


class InvalidAudio(ClientError):
    """The audio cannot be read, or there is too much of it in one message."""


class EmptyCommit(ClientError):
    """There is nothing to commit."""


class UnknownModel(ClientError):
    """No such model here."""


class Unauthorized(ClientError):
    """The key or ticket is missing or wrong."""


class Forbidden(ClientError):
    """The request comes from an origin that is not allowed."""


class TooLarge(ClientError):
    """Over a size limit."""


class TooLong(TooLarge):
    """More audio in a file than its limit."""


class MediaError(ClientError):
    """A file cannot be read: it is empty, holds no audio, is of an unknown format, or is damaged."""


class SourceRefused(ClientError):
    """The server does not read from this address or path."""


class SourceUnreachable(ClientError):
    """Nothing can be read from this address or path, or not in time.

    Args:
        message: safe to show to a client.
        status: of the HTTP answer, where one came.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Overloaded(AsrServerError):
    """The server is full."""

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(Overloaded):
    """The server is going away; another may take its place."""


class IdleTimeout(AsrServerError):
    """Nothing came from the peer for too long."""


class EngineError(AsrServerError):
    """Recognition of one utterance failed."""

    retryable = True


class EngineNotReady(EngineError):
    """The engine is loading, or could not be loaded."""


class EngineTimeout(EngineError):
    """A decode took longer than its deadline."""


class EngineCrashed(EngineError):
    """The engine's process died."""


class InternalError(AsrServerError):
    """A fault of ours. The message carries an id that the log repeats."""
