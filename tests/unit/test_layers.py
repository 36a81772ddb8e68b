"""The direction of imports, and the purity of the layers that decide things.

The table below is the architecture: docs/architecture.md explains it, this test enforces it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "qwen3_asr_server"
SOURCE = Path(__file__).resolve().parents[2] / "src" / PACKAGE

VALUES = {"domain", "messages", "errors"}
TOOLS = {"audio", "text"}
LEAVES = {"logs", "metrics"}

ALLOWED = {
    "errors": set(),
    "domain": set(),
    "messages": {"domain", "errors"},
    "logs": set(),
    "metrics": set(),
    "config": set(),
    "audio": VALUES,
    "text": VALUES,
    "engines": VALUES | TOOLS | LEAVES,
    "vad": VALUES | TOOLS | LEAVES,
    "session": VALUES | TOOLS,
    "protocols": VALUES | TOOLS,
    "runtime": VALUES | TOOLS | LEAVES | {"engines", "vad", "session"},
    "frontends": VALUES | TOOLS | LEAVES | {"engines", "vad", "session", "runtime", "protocols"},
    "commands": VALUES | TOOLS | {"session", "runtime"},
    "cli": {"commands"} | VALUES | TOOLS | LEAVES | {"engines", "vad", "session", "runtime", "protocols", "frontends"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""Layer → the layers it may import, besides itself. `config` is not in it: see `READERS_OF_SETTINGS`."""

READERS_OF_SETTINGS = {"cli", "frontends._app", "runtime.services", "runtime.from_settings"}

PURE = VALUES | TOOLS | {"session", "protocols"}
IMPURE = {
    *("asyncio", "threading", "multiprocessing", "concurrent", "queue", "subprocess", "socket", "selectors", "ssl"),
    *("time", "datetime", "random", "secrets", "uuid", "os", "logging", "importlib"),
}
FRAMEWORKS = {"fastapi", "starlette", "uvicorn", "websockets", "pydantic_settings", "prometheus_client"}
MODELS = {"torch", "vllm", "transformers", "onnxruntime", "pocketsphinx", "qwen_asr", "av", "soxr"}
EXCEPTIONS = {"audio": {"av", "soxr"}}
DISCOVERY = {"protocols": {"importlib"}}
"""The one module that finds the others of its package."""


def module_name(path: Path) -> str:
    """Return the dotted name below the package: `audio.pcm`, `session`, `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the full names of everything a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"{path.name}:{node.lineno}: relative import")


def own_imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, as names below the package."""
    found = set()
    for full in imported_modules(path):
        if full == PACKAGE or not full.startswith(PACKAGE + "."):
            continue
        name = full.removeprefix(PACKAGE + ".")
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name in MODULES:
            found.add(name)
    return found


def layer(module: str) -> str:
    return module.partition(".")[0]


def test_the_table_names_every_layer() -> None:
    assert {layer(module) for module in MODULES} <= ALLOWED.keys()


def test_the_walk_sees_imports() -> None:
    assert "domain" in own_imports(MODULES["messages"])
    assert "numpy" in set(imported_modules(MODULES["messages"]))


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers(module: str) -> None:
    imports = own_imports(MODULES[module])
    allowed = ALLOWED[layer(module)] | {layer(module)}
    assert {layer(name) for name in imports} - {"config"} <= allowed
    if module != "config":
        assert "config" not in imports or module in READERS_OF_SETTINGS


@pytest.mark.parametrize("module", [module for module in MODULES if layer(module) in PURE])
def test_pure_layers_stay_pure(module: str) -> None:
    allowed = EXCEPTIONS.get(layer(module), set()) | DISCOVERY.get(module, set())
    forbidden = (IMPURE | FRAMEWORKS | MODELS) - allowed
    assert not {name.partition(".")[0] for name in imported_modules(MODULES[module])} & forbidden
