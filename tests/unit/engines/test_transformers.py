"""When `auto` takes the engine transformers, and what is said where it cannot run. The model itself: tests/vllm."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from qwen3_asr_server.engines import load_engine, transformers
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.errors import EngineNotReady
from support.tiny_speech import CHECKPOINT


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Packages that seem to be installed, with their versions; nothing else does."""
    versions: dict[str, str] = {}

    def find_spec(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None) if name in versions else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(transformers.metadata, "version", lambda name: versions[name])
    return versions


@pytest.mark.parametrize(
    ("packages", "model_path", "taken"),
    [
        ({"torch": "2.13.0", "transformers": "5.19.0"}, str(CHECKPOINT), True),
        ({"torch": "2.13.0", "transformers": "4.57.6"}, str(CHECKPOINT), False),
        ({"transformers": "5.19.0"}, str(CHECKPOINT), False),
        ({"torch": "2.13.0"}, str(CHECKPOINT), False),
        ({"torch": "2.13.0", "transformers": "5.19.0"}, str(CHECKPOINT.parent), False),
    ],
)
def test_auto_takes_it_with_packages_and_weights(
    installed: dict[str, str], packages: dict[str, str], model_path: str, taken: bool
) -> None:
    installed |= packages
    assert (transformers.auto_reason(EngineOptions(model_path)) is not None) == taken


def test_a_folder_needs_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not transformers.weights_on_disk(str(tmp_path))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert transformers.weights_on_disk(str(tmp_path))


@pytest.mark.parametrize(
    ("engine", "packages", "reason"),
    [
        ("transformers", {"torch": "2.13.0"}, "install the extra 'transformers'"),
        ("transformers", {"torch": "2.13.0", "transformers": "4.57.6"}, "5.16.1 or later"),
        ("qwen_asr", {"torch": "2.13.0"}, "install the extra 'qwen-asr'"),
    ],
)
async def test_what_is_missing_is_named(
    installed: dict[str, str], engine: str, packages: dict[str, str], reason: str
) -> None:
    installed |= packages
    with pytest.raises(EngineNotReady, match=reason):
        await load_engine(engine, EngineOptions()).start()
