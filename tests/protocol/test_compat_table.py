"""The compatibility tables of the WebSockets, docs/api/dashscope{,_inference}.md, against the code and the tests."""

import ast
import re
from pathlib import Path

import pytest

from qwen3_asr_server.protocols._dashscope_errors import WIRE_ERRORS
from qwen3_asr_server.protocols._dashscope_session import SAMPLE_RATES
from qwen3_asr_server.protocols._dashscope_task import FORMATS
from qwen3_asr_server.text.hotwords import BEFOREHAND
from qwen3_asr_server.text.languages import WIRE_LANGUAGES

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "api" / "dashscope.md"
TEXT = TABLE.read_text(encoding="utf-8")
TASKS = TABLE.with_name("dashscope_inference.md").read_text(encoding="utf-8")
UNTOLD = {"input_audio_buffer_commit_empty", "InvalidApiKey", "AccessDenied"}
"""Codes that no task can fail with: they are of Manual mode, or were said in the handshake."""
LINK = re.compile(r"\[`([\w:]+)`\]\(([^)]+\.py)\)")
EVENT_TYPE = re.compile(r"(session|input_audio_buffer|input_image_buffer|conversation|response)(\.[a-z_]+)+|error")
TRANSCRIPTION = "conversation.item.input_audio_transcription."


def rows(text: str = TEXT) -> list[list[str]]:
    """Return the cells of every row in a table with a verdict."""
    return cells_of(text[: text.index("## Errors")])


def cells_of(text: str) -> list[list[str]]:
    """Return the cells of every row that ends with the name of a test."""
    lines = [line.strip("|") for line in text.splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in re.split(r" \|(?= )", line)] for line in lines]
    return [row for row in cells if row[-1].startswith("[")]


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


@pytest.mark.parametrize(("test", "file"), sorted({*LINK.findall(TEXT), *LINK.findall(TASKS)}))
def test_every_test_that_is_named_exists(test: str, file: str) -> None:
    path = (TABLE.parent / file).resolve()
    assert path.is_relative_to(ROOT / "tests")
    assert test in names_in(path)


def test_every_event_in_the_code_has_its_row() -> None:
    first_cells = {row[0].strip("`") for row in rows()}
    assert types_in_code() - first_cells == set()
    assert len(types_in_code()) >= 20


@pytest.mark.parametrize(("text", "least"), [(TEXT, 50), (TASKS, 30)], ids=["realtime", "tasks"])
def test_every_row_has_a_verdict_and_a_test(text: str, least: int) -> None:
    assert len(rows(text)) >= least
    for row in rows(text):
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


def test_every_code_of_a_task_is_explained() -> None:
    table = {row[0].strip("`"): row for row in cells_of(TASKS[TASKS.index("## Errors") :])}
    assert len(table) >= 6
    for wire in WIRE_ERRORS.values():
        code = wire.task_code or wire.code
        if code not in UNTOLD:
            assert str(wire.close_code) in table[code][1]


def test_every_format_and_field_of_a_task_has_its_row() -> None:
    table = {name: row for row in rows(TASKS) for name in re.findall(r"`([^`]+)`", row[0])}
    assert all(f"`{name}`" in table["format"][2] for name in FORMATS)
    assert {*BEFOREHAND, "model", "sample_rate", "language_hints", "max_sentence_silence"} <= set(table)
