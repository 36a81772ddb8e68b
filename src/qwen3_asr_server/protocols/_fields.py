"""Reading of untrusted JSON objects, field by field, with refusals a client can act upon.

Every getter returns None for a field that is missing or null, a value of the type it names, or raises
`InvalidValue` whose `param` is the full path of the field. Knows JSON's types and nothing of any protocol.
Pydantic would do this too, but its messages and its merging are not the vendor's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen3_asr_server.errors import InvalidValue

JsonObject = Mapping[str, Any]
SHOWN_CHARS: Final = 64
"""A value of the client is cut to this length in a message that quotes it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object that knows its place in the message."""

    values: JsonObject
    path: str
    """Where it stands; empty for the message itself."""

    @classmethod
    def of(cls, value: object, path: str) -> "Fields":
        """Wrap `value`, which must be an object."""
        if not isinstance(value, Mapping):
            raise InvalidValue(f"Invalid value: {quoted(value)}. An object is expected.", param=path)
        return cls(value, path)

    def has(self, name: str) -> bool:
        """Tell whether the field is there, be it null."""
        return name in self.values

    def place(self, name: str) -> str:
        """Return where a field stands."""
        return f"{self.path}.{name}" if self.path else name

    def refusal(self, name: str, expected: str) -> InvalidValue:
        """Return the error that says what is wrong with a field and what was `expected`."""
        return InvalidValue(f"Invalid value: {quoted(self.values[name])}. {expected}", param=self.place(name))

    def object(self, *names: str) -> "Fields | None":
        """Return the object at the end of a path of names."""
        fields = self
        for name in names:
            value = fields.values.get(name)
            if value is None:
                return None
            fields = Fields.of(value, fields.place(name))
        return fields

    def text(self, name: str) -> str | None:
        """Return a string."""
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.refusal(name, "A string is expected.")

    def texts(self, name: str) -> list[str] | None:
        """Return an array of strings."""
        value = self.values.get(name)
        if value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            return value
        raise self.refusal(name, "An array of strings is expected.")

    def flag(self, name: str) -> bool | None:
        """Return a truth value."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise self.refusal(name, supported((True, False)))

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number from `low` to `high`, both included."""
        value = self.values.get(name)
        if value is None or (_is_number(value) and low <= value <= high):
            return value
        raise self.refusal(name, f"A number from {low} to {high} is expected.")

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number from `low` to `high`, both included; `400.0` is one."""
        value = self.number(name, low, high)
        if value is None or value == int(value):
            return value if value is None else int(value)
        raise self.refusal(name, "A whole number is expected.")

    def choice(self, name: str, allowed: Iterable[str]) -> str | None:
        """Return one of the `allowed` strings."""
        value = self.values.get(name)
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        raise self.refusal(name, supported(allowed))

    def integer_among(self, name: str, allowed: tuple[int, ...]) -> int | None:
        """Return one of the `allowed` numbers."""
        value = self.values.get(name)
        if value is None or (_is_number(value) and value in allowed):
            return value if value is None else int(value)
        raise self.refusal(name, supported(allowed))


def quoted(value: object) -> str:
    """Return a JSON value as a message shows it: cut short, strings in single quotes."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"'{_clipped(value)}'"
        case list():
            return "an array"
        case Mapping():
            return "an object"
        case _:
            return _clipped(str(value))


def supported(values: Iterable[object]) -> str:
    """Return the sentence that lists what a field may be."""
    return f"Supported values are: {', '.join(map(quoted, values))}."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
