"""What the machine of every protocol holds for its driver, until that comes for it.

A protocol inherits from `Machine`, appends to its lists and sets its fields; the driver's contract is in `_base`.
"""

from qwen3_asr_server.messages import Command
from qwen3_asr_server.protocols._base import Close, SessionRequest


class Machine:
    """Commands, messages and the like that are pending."""

    def __init__(self) -> None:
        self._commands: list[Command] = []
        self._messages: list[str | bytes] = []
        self._errors: list[str] = []
        self._to_open: SessionRequest | None = None
        self._close: Close | None = None

    @property
    def close_expected(self) -> Close | None:
        """How to end the connection, or None while it goes on."""
        return self._close

    def session_to_open(self) -> SessionRequest | None:
        """Return the session that is to be opened now; each is asked for once."""
        pending, self._to_open = self._to_open, None
        return pending

    def commands_received(self) -> list[Command]:
        """Return the commands since the last call, oldest first."""
        pending, self._commands = self._commands, []
        return pending

    def messages_to_send(self) -> list[str | bytes]:
        """Return the messages since the last call, oldest first."""
        pending, self._messages = self._messages, []
        return pending

    def errors_told(self) -> list[str]:
        """Return the codes of the errors told since the last call, those of failed utterances and tasks included."""
        pending, self._errors = self._errors, []
        return pending
