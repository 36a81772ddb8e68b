"""The compatibility table in docs/api/dashscope.md against the code and the tests it names."""

import ast
import re
from pathlib import Path

import pytest

from qwen3_asr_server.protocols._dashscope_errors import WIRE_ERRORS
from qwen3_asr_server.protocols._dashscope_session import SAMPLE_RATES
from qwen3_asr_server.text.languages import WIRE_LANGUAGES

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "api" / "dashscope.md"
TEXT = TABLE.read_text(encoding="utf-8")
LINK = re.compile(r"\[`([\w:]+)`\]\(([^)]+\.py)\)")
EVENT_TYPE = re.compile(r"(session|input_audio_buffer|input_image_buffer|conversation|response)(\.[a-z_]+)+|error")
TRANSCRIPTION = "conversation.item.input_audio_transcription."


def rows() -> list[list[str]]:
    """Return the cells of every row in a table with a verdict."""
    return cells_of(TEXT[: TEXT.index("## Errors")])


def cells_of(text: str) -> list[list[str]]:
    """Return the cells of every row that ends with the name of a test."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [[cell.strip(" |") for cell in row] for row in cells if row[-1].startswith("[")]


def names_in(path: Path) -> set[str]:
    """Return the names of all tests in a file: `test_x`, `TestY::test_z`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=body):
                names |= {f"{name}::{each.name}" for each in body if isinstance(each, ast.FunctionDef)}
    return names


def types_in_code() -> set[str]:
    """Return every string of the protocol's modules that is an event type."""
    found = set()
    for path in (ROOT / "src" / "qwen3_asr_server" / "protocols").glob("*dashscope*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Constant(value=str(text)) if EVENT_TYPE.fullmatch(text):
                    found.add(text)
                case ast.Call(func=ast.Attribute(attr="_send_transcription"), args=[ast.Constant(value=str(kind)), *_]):
                    found.add(TRANSCRIPTION + kind)
    return found


@pytest.mark.parametrize(("test", "file"), sorted(set(LINK.findall(TEXT))))
def test_every_test_that_is_named_exists(test: str, file: str) -> None:
    path = (TABLE.parent / file).resolve()
    assert path.is_relative_to(ROOT / "tests")
    assert test in names_in(path)


def test_every_event_in_the_code_has_its_row() -> None:
    first_cells = {row[0].strip("`") for row in rows()}
    assert types_in_code() - first_cells == set()
    assert len(types_in_code()) >= 20


def test_every_row_has_a_verdict_and_a_test() -> None:
    assert len(rows()) >= 50
    for row in rows():
        assert len(row) == 4, row
        assert row[1] in {"supported", "accepted", "refused", "ours"}, row
        assert LINK.fullmatch(row[3]), row


def test_every_error_code_is_explained_with_its_type_and_close_codes() -> None:
    table = TEXT[TEXT.index("## Errors") :]
    assert len(cells_of(table)) >= 12
    assert all(len(row) == 5 and LINK.fullmatch(row[4]) for row in cells_of(table))
    for wire in WIRE_ERRORS.values():
        (line,) = [line for line in table.splitlines() if line.startswith("|") and f"`{wire.code}`" in line]
        assert f"`{wire.type}`" in line
        if (wire.code, wire.close_code) != ("InvalidParameter", 1008):  # only a base class, never raised
            assert str(wire.close_code) in line
        if wire.failed_code:
            assert f"`{wire.failed_code}`" in table


def test_the_lists_in_the_text_are_those_in_the_code() -> None:
    assert f"`{' '.join(language.code for language in WIRE_LANGUAGES)}`" in TEXT
    (row,) = [row for row in rows() if row[0] == "`sample_rate`"]
    assert [int(number) for number in re.findall(r"\d{4,}", row[2])] == list(SAMPLE_RATES)
