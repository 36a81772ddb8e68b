"""The tables in docs/api/{rest,openai,dashscope_http,dashscope_jobs}.md against the code and the tests they name."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from qwen3_asr_server.frontends import (
    _errors,
    _filetrans,
    _vendor,
    dashscope_sync,
    dashscope_uploads,
    native,
    openai,
    openai_chat,
)

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("rest", "openai", "dashscope_http", "dashscope_jobs")
TABLES = {path.stem: path for path in (ROOT / "docs" / "api").glob("*.md") if path.stem in NAMES}
LINK = re.compile(r"\[`(\w+)`\]\(([^)]+\.py)\)")
LINKS = sorted({(table, *link) for table, path in TABLES.items() for link in LINK.findall(path.read_text("utf-8"))})


def properties(routes: list[Any], path: str) -> set[str]:
    """Return the fields that a door's OpenAPI names."""
    posted = [route for route in routes if isinstance(route, APIRoute) and "POST" in route.methods]
    (route,) = [route for route in posted if route.path == path]
    assert route.openapi_extra is not None
    contents = route.openapi_extra["requestBody"]["content"].values()
    return {name for content in contents for name in content["schema"]["properties"]}


def rows(table: str) -> list[list[str]]:
    lines = [line for line in TABLES[table].read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize(("table", "test", "file"), LINKS)
def test_every_test_that_is_named_exists(table: str, test: str, file: str) -> None:
    path = (TABLES[table].parent / file).resolve()
    functions = ast.parse(path.read_text("utf-8")).body
    assert test in {node.name for node in functions if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(
    ("table", "routes", "path"),
    [
        ("rest", native.router.routes, "/api/transcribe"),
        ("openai", openai.router.routes, "/v1/audio/transcriptions"),
        ("openai", openai_chat.router.routes, "/v1/chat/completions"),
        ("dashscope_http", dashscope_sync.router.routes, dashscope_sync.PATH),
        ("dashscope_http", dashscope_uploads.router.routes, dashscope_uploads.PATH),
    ],
)
def test_every_field_has_a_row_with_a_test(table: str, routes: list[Any], path: str) -> None:
    named = {name for row in rows(table) for name in re.findall(r"`([^`]+)`", row[0])}
    assert properties(routes, path) <= named
    assert all(LINK.search(row[-1]) for row in rows(table) if row[-1] != "Test")


@pytest.mark.parametrize("code", sorted({*_errors._OPENAI_CODES.values()}))
def test_every_code_of_openais_form_is_explained(code: str) -> None:
    assert any(f"`{code}`" in row[0] for row in rows("openai"))


@pytest.mark.parametrize("code", sorted({code for _, code in _vendor.CODES.values()}))
def test_every_code_of_dashscopes_form_is_explained(code: str) -> None:
    assert any(f"`{code}`" in row[0] for row in rows("dashscope_http"))


@pytest.mark.parametrize("code", sorted({*_filetrans.CODES.values()}))
def test_every_code_of_a_file_in_a_job_is_explained(code: str) -> None:
    assert any(f"`{code}`" in row[0] for row in rows("dashscope_jobs"))
