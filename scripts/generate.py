"""Write `.env.example` and `docs/configuration.md` from the settings' own docstrings.

`--check` changes nothing and fails when a file is stale. Groups are the comment lines between the fields of
`Settings`; everything else comes from the model itself.
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from qwen3_asr_server.config import Settings

ROOT = Path(__file__).resolve().parents[1]

ENV_HEAD = """\
# Every setting with its default. Copy to .env and change what you need; the environment wins over the file.
# Generated from src/qwen3_asr_server/config.py by scripts/generate.py.
"""

DOCS_HEAD = """\
<!-- Generated from src/qwen3_asr_server/config.py by scripts/generate.py. -->
# Configuration

Settings are environment variables. A file `.env` in the working directory is read too (`cp .env.example .env`);
where both name a setting, the environment wins, and a flag of the command line wins over both
(`qwen3-asr-server serve --help`). A value that is out of range ends the process at start with the reason.
Names are not case-sensitive. Lists are separated by commas.
"""


@dataclass(frozen=True)
class Setting:
    """One field of `Settings`, as text."""

    group: str
    name: str
    default: str
    kind: str
    text: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a file is stale")
    check = parser.parse_args().check
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"stale: {path.relative_to(ROOT)} (run scripts/generate.py)", file=sys.stderr)
        else:
            path.write_text(generated()[path], "utf-8")
            print(f"written: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


def generated() -> dict[Path, str]:
    """Return what every generated file must hold."""
    settings = list(read_settings())
    return {ROOT / ".env.example": env_example(settings), ROOT / "docs" / "configuration.md": configuration(settings)}


def read_settings() -> Iterator[Setting]:
    groups = dict(read_groups(inspect.getsource(Settings)))
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} has no docstring"
        text = " ".join(field.description.split())
        yield Setting(groups[name], name.upper(), default_of(field), kind_of(field), text)


def read_groups(source: str) -> Iterator[tuple[str, str]]:
    group = ""
    for line in source.splitlines():
        if comment := re.match(r"    # (.+)$", line):
            group = comment[1]
        elif field := re.match(r"    (\w+): ", line):
            yield field[1], group


def env_example(settings: list[Setting]) -> str:
    lines = [ENV_HEAD]
    for group, members in groupby(settings, key=lambda setting: setting.group):
        lines.append(f"# --- {group} ---\n")
        for setting in members:
            lines.append(textwrap.fill(setting.text, 110, initial_indent="# ", subsequent_indent="# "))
            lines.append(f"{setting.name}={setting.default}\n")
    return "\n".join(lines)


def configuration(settings: list[Setting]) -> str:
    parts = [DOCS_HEAD]
    for group, members in groupby(settings, key=lambda setting: setting.group):
        parts.append(f"## {group}\n\n| Setting | Default | Values | Meaning |\n|---|---|---|---|")
        for setting in members:
            default = f"`{setting.default}`" if setting.default else "empty"
            text = setting.text.replace("|", "\\|")
            parts.append(f"| `{setting.name}` | {default} | {setting.kind} | {text} |")
        parts.append("")
    return "\n".join(parts)


def default_of(field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ",".join(map(str, default))
    return str(default)


def kind_of(field: FieldInfo) -> str:
    kind: Any = field.annotation
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is list:
        return "list"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", SecretStr: "text"}
    limits = [phrase for limit in field.metadata for phrase in limit_of(limit)]
    return ", ".join([names[kind], *limits])


def limit_of(limit: object) -> Iterator[str]:
    match limit:
        case Ge(ge=value):
            yield f"at least {value}"
        case Gt(gt=value):
            yield f"above {value}"
        case Le(le=value):
            yield f"at most {value}"
        case Lt(lt=value):
            yield f"below {value}"


if __name__ == "__main__":
    sys.exit(main())
