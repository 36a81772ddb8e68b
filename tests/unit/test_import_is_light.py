"""Importing the package, or any pure layer of it, loads no framework and no model library.

Each check runs in a fresh interpreter, because this one has long imported everything.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "qwen3_asr_server"
SOURCE = Path(__file__).resolve().parents[2] / "src"

MODELS = {"torch", "vllm", "transformers", "qwen_asr", "onnxruntime", "pocketsphinx"}
HEAVY = MODELS | {"fastapi", "starlette", "uvicorn", "websockets", "pydantic_settings", "prometheus_client"}
CODECS = {"av", "soxr"}


def modules_after_importing(*names: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after importing `names`."""
    program = f"import sys, json; {'; '.join(f'import {name}' for name in names)}; print(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return {module.partition(".")[0] for module in json.loads(result.stdout)}


def modules_below(layer: str) -> list[str]:
    folder = SOURCE / PACKAGE / layer
    return [f"{PACKAGE}.{layer}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]


def test_the_check_sees_what_is_heavy() -> None:
    assert "fastapi" in modules_after_importing("fastapi")


def test_the_package_itself_is_light() -> None:
    assert not modules_after_importing(PACKAGE) & (HEAVY | CODECS | {"numpy", "asyncio"})


def test_values_are_light() -> None:
    names = [f"{PACKAGE}.{name}" for name in ("domain", "messages", "errors")]
    assert not modules_after_importing(*names) & (HEAVY | CODECS)


@pytest.mark.parametrize("layer", ["text", "session", "protocols"])
def test_pure_layers_are_light(layer: str) -> None:
    assert not modules_after_importing(PACKAGE, *modules_below(layer)) & (HEAVY | CODECS)


def test_audio_loads_only_its_codecs() -> None:
    assert not modules_after_importing(PACKAGE, *modules_below("audio")) & HEAVY


@pytest.mark.parametrize("layer", ["engines", "vad"])
def test_naming_a_layer_loads_no_model_library(layer: str) -> None:
    assert not modules_after_importing(f"{PACKAGE}.{layer}") & MODELS


def test_the_command_line_loads_no_model_library() -> None:
    assert not modules_after_importing(f"{PACKAGE}.cli") & MODELS
