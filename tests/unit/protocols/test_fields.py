import pytest

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.protocols._fields import Fields, quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (0.25, "0.25"),
        ("pcm", "'pcm'"),
        ([1], "an array"),
        ({"a": 1}, "an object"),
        ("x" * 64, f"'{'x' * 64}'"),
        ("x" * 65, f"'{'x' * 63}…'"),
        (10**100, "1" + "0" * 62 + "…"),
    ],
)
def test_quoted_values_are_short(value: object, text: str) -> None:
    assert quoted(value) == text


GETTERS = {
    "text": lambda fields: fields.text("f"),
    "texts": lambda fields: fields.texts("f"),
    "flag": lambda fields: fields.flag("f"),
    "number": lambda fields: fields.number("f", -1, 1),
    "integer": lambda fields: fields.integer("f", 0, 10),
    "choice": lambda fields: fields.choice("f", ("a", "b")),
    "integer_among": lambda fields: fields.integer_among("f", (1, 2)),
    "object": lambda fields: fields.object("f"),
}


@pytest.mark.parametrize("getter", GETTERS)
@pytest.mark.parametrize("values", [{}, {"f": None}])
def test_missing_and_null_read_as_none(getter: str, values: dict[str, object]) -> None:
    assert GETTERS[getter](Fields(values, "session")) is None


@pytest.mark.parametrize(
    ("getter", "value", "read"),
    [
        ("text", "", ""),
        ("texts", ["a"], ["a"]),
        ("flag", False, False),
        ("number", -1, -1),
        ("number", 0.5, 0.5),
        ("integer", 10.0, 10),
        ("choice", "b", "b"),
        ("integer_among", 2.0, 2),
    ],
)
def test_good_values_are_read(getter: str, value: object, read: object) -> None:
    found = GETTERS[getter](Fields({"f": value}, "session"))
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("getter", "value", "message"),
    [
        ("text", 1, "Invalid value: 1. A string is expected."),
        ("texts", "a", "Invalid value: 'a'. An array of strings is expected."),
        ("texts", ["a", 1], "Invalid value: an array. An array of strings is expected."),
        ("flag", 1, "Invalid value: 1. Supported values are: true, false."),
        ("number", 1.5, "Invalid value: 1.5. A number from -1 to 1 is expected."),
        ("number", True, "Invalid value: true. A number from -1 to 1 is expected."),
        ("integer", 11, "Invalid value: 11. A number from 0 to 10 is expected."),
        ("integer", 2.5, "Invalid value: 2.5. A whole number is expected."),
        ("choice", "c", "Invalid value: 'c'. Supported values are: 'a', 'b'."),
        ("choice", {}, "Invalid value: an object. Supported values are: 'a', 'b'."),
        ("integer_among", True, "Invalid value: true. Supported values are: 1, 2."),
        ("integer_among", 3, "Invalid value: 3. Supported values are: 1, 2."),
        ("object", [], "Invalid value: an array. An object is expected."),
    ],
)
def test_others_are_refused_with_their_path(getter: str, value: object, message: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        GETTERS[getter](Fields({"f": value}, "session"))
    assert (raised.value.message, raised.value.param) == (message, "session.f")


def test_objects_are_reached_by_their_path() -> None:
    fields = Fields.of({"audio": {"input": {"rate": 8000}}}, "session")
    inner = fields.object("audio", "input")
    assert inner == Fields({"rate": 8000}, "session.audio.input")
    assert fields.object("audio", "output", "rate") is None
    assert fields.has("audio")
    assert not fields.has("video")


def test_only_objects_can_be_read() -> None:
    with pytest.raises(InvalidValue) as raised:
        Fields.of("x", "session")
    assert raised.value.param == "session"
