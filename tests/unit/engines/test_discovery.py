"""Engines are found by the names of their files, and only the one asked for is imported."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qwen3_asr_server import engines
from qwen3_asr_server.engines import Choice, choose_engine, engine_names, load_engine
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.errors import EngineNotReady

OPTIONS = EngineOptions()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules count as engines for one test, before the real ones of the same name."""
    monkeypatch.setattr(engines, "__path__", [str(tmp_path), *engines.__path__])
    modules = [f"{engines.__name__}.{name}" for name in ("vllm", "transformers", "needy", "mine")]
    before = {module: sys.modules.pop(module) for module in modules if module in sys.modules}
    yield tmp_path
    for module in modules:
        sys.modules.pop(module, None)
    sys.modules.update(before)


def test_every_module_without_underscore_is_an_engine(folder: Path) -> None:
    (folder / "mine.py").write_text("")
    (folder / "_shared.py").write_text("")
    names = engine_names()
    assert {"mine", "pocketsphinx"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if name.startswith("_")]


def test_loading_builds_it_with_the_options(folder: Path) -> None:
    (folder / "mine.py").write_text("def ENGINE(options): return ('built with', options)\n")
    assert load_engine("mine", OPTIONS) == ("built with", OPTIONS)


@pytest.mark.parametrize("name", ["nemo", "_base", "", "pocketsphinx.ENGINE", "Pocketsphinx"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    for resolve in (load_engine, choose_engine):
        with pytest.raises(EngineNotReady, match="pocketsphinx") as refusal:
            resolve(name, OPTIONS)
        assert repr(name) in refusal.value.message


def test_a_missing_package_is_named(folder: Path) -> None:
    (folder / "needy.py").write_text("import surely_not_installed\n")
    with pytest.raises(EngineNotReady, match=r"'needy' needs 'surely_not_installed'"):
        load_engine("needy", OPTIONS)


def test_other_packages_join_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("elsewhere", "support.fake_engine", engines.ENTRY_POINTS)

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [point] if group == engines.ENTRY_POINTS and name in (None, "elsewhere") else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert "elsewhere" in engine_names()
    assert load_engine("elsewhere", OPTIONS).info.name == "fake"
    assert choose_engine("elsewhere", OPTIONS) == Choice("elsewhere", "named by ENGINE")


def test_a_named_engine_is_never_replaced(folder: Path) -> None:
    (folder / "vllm.py").write_text("def auto_reason(options): return 'always'\n")
    assert choose_engine("pocketsphinx", OPTIONS).name == "pocketsphinx"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, "pocketsphinx"),
        ({"vllm": "None"}, "pocketsphinx"),
        ({"vllm": "'a GPU answers'"}, "vllm"),
        ({"vllm": "None", "transformers": "'weights are on disk'"}, "transformers"),
        ({"transformers": "'weights are on disk'", "vllm": "'a GPU answers'"}, "vllm"),
        ({"mine": "'pick me'"}, "pocketsphinx"),
    ],
)
def test_auto_takes_the_best_that_can_run_here(folder: Path, answers: dict[str, str], expected: str) -> None:
    for name, answer in answers.items():
        (folder / f"{name}.py").write_text(f"def auto_reason(options): return {answer}\n")
    choice = choose_engine("auto", OPTIONS)
    assert choice.name == expected
    assert choice.reason


def test_auto_may_look_at_the_options(folder: Path) -> None:
    (folder / "vllm.py").write_text("def auto_reason(options): return options.model_path\n")
    assert choose_engine("auto", EngineOptions(model_path="somewhere")) == Choice("vllm", "somewhere")


def test_naming_engines_imports_none_of_them() -> None:
    probe = (
        "import sys; from qwen3_asr_server.engines import engine_names; engine_names();"
        "print({'numpy', 'pocketsphinx', 'qwen3_asr_server.engines.pocketsphinx'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "set()\n"
