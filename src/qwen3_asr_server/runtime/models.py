"""The models that clients may ask for by name, and an engine for each.

The first is the default. What it knows of a model is a path and a name; engines are built, not started. Called by
the services.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath

from qwen3_asr_server.domain import EngineInfo
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import Engine, EngineOptions
from qwen3_asr_server.errors import EngineNotReady


def named_paths(default: str, others: Iterable[str]) -> dict[str, str]:
    """Return the paths of the models by their names.

    Args:
        default: hub name or folder.
        others: the same, or `name=path`. Without a name, the last part of the path in lower case is the name.

    Raises:
        EngineNotReady: two models have the same name.
    """
    named = [("", default), *(_split(entry) for entry in others)]
    found: dict[str, str] = {}
    for given, path in named:
        name = given or PurePath(path).name.lower() or path
        if name in found:
            raise EngineNotReady(f"Two models are named {name!r}: write one of them as name=path.")
        found[name] = path
    return found


def build_engines(engine: str, options: EngineOptions, paths: Mapping[str, str]) -> dict[str, Engine]:
    """Build an engine for each model.

    Args:
        engine: its name, the same for all.
        options: for all; the path is replaced.
        paths: of the weights, by the names of the models.

    Raises:
        EngineNotReady: the engine cannot be imported.
    """
    return {name: load_engine(engine, replace(options, model_path=path)) for name, path in paths.items()}


class ModelNames:
    """What clients may call the models.

    Args:
        infos: what each model is, by its name; the first is the default.
    """

    def __init__(self, infos: Mapping[str, EngineInfo]) -> None:
        self._infos = dict(infos)
        self.default = next(iter(self._infos))

    @property
    def names(self) -> tuple[str, ...]:
        """The models' own names, the default first."""
        return tuple(self._infos)

    @property
    def known(self) -> frozenset[str]:
        """Everything that `resolve` has a model for; the engine's name stands for the default."""
        return frozenset({self._infos[self.default].name, *self._infos, *(i.model for i in self._infos.values())})

    def resolve(self, asked: str | None) -> str:
        """Return the name of the model that a client wants: the default, unless it names another."""
        named = asked if asked in self._infos else next(self._models_called(asked), None)
        return named or self.default

    def _models_called(self, asked: str | None) -> Iterator[str]:
        return (name for name, info in self._infos.items() if info.model == asked)


def _split(entry: str) -> tuple[str, str]:
    name, separator, path = entry.partition("=")
    return (name.strip(), path.strip()) if separator else ("", entry)
