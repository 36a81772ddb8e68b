"""The documents agree with the repository and with one another."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/data/**/*.md")])

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+) .+$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAKE_TARGET = re.compile(r"\bmake ((?:[a-z]+(?:-[a-z]+)*)(?: (?:fmt|lint|types|test-basic))*)")
COMMENT = re.compile(r"\s*#.*$", re.MULTILINE)

MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home(?!/secret)|root|Users|work|mnt)/\w")
REGISTRIES = re.compile(
    r"files\.pythonhosted\.org|pypi\.(?:org|tuna)|registry\.npm|mirrors\.aliyun|download\.pytorch\.org", re.IGNORECASE
)
PROMISED_TARGETS = {
    *("prod-setup", "dev-setup", "sync", "sync-demo", "sync-all", "lock", "start"),
    *("test", "test-basic", "test-sdk", "test-vad", "clean", "clean-all"),
}
MAY_NAME_REGISTRIES = {"uv.lock", "tests/unit/test_docs.py"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return CODE_BLOCK.sub("", text)


def tracked_texts() -> list[tuple[str, str]]:
    """Return name and content of every text file that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    texts = []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes())[:4096]:
            texts.append((name, content.decode("utf-8", errors="replace")))
    return texts


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Return the names under which the headings of a page can be linked to."""
    headings = [match[0].lstrip("# ") for match in HEADING.finditer(without_code(text))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        destination = (path.parent / name).resolve() if name else path
        assert destination.exists(), target
        if anchor and destination.suffix == ".md":
            assert anchor in anchors(destination.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(path: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))
    code += [block for _, block in CODE_BLOCK.findall(path.read_text(encoding="utf-8"))]
    mentioned = {target for text in code for found in MAKE_TARGET.findall(text) for target in found.split()}
    assert mentioned <= make_targets()


def test_every_make_target_is_there_and_explained() -> None:
    explained = set(re.findall(r"^([a-z-]+):.*## \S", read("Makefile"), re.MULTILINE))
    assert make_targets() == explained
    assert explained >= PROMISED_TARGETS


def test_both_readmes_have_the_same_headings_and_tables() -> None:
    english, chinese = (without_code(read(name)) for name in ("README.md", "README.zh-CN.md"))
    levels = [[heading.group(1) for heading in HEADING.finditer(text)] for text in (english, chinese)]
    assert levels[0] == levels[1]
    rows = [re.findall(r"^\| .*\|$", text, re.MULTILINE) for text in (english, chinese)]
    assert [row.count("|") for row in rows[0]] == [row.count("|") for row in rows[1]]
    points = [len(re.findall(r"^- ", text, re.MULTILINE)) for text in (english, chinese)]
    assert points[0] == points[1]


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = (
        [(language, COMMENT.sub("", code)) for language, code in CODE_BLOCK.findall(read(name))]
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english == chinese


def test_both_readmes_link_to_the_same_places() -> None:
    english, chinese = (set(LINK.findall(read(name))) for name in ("README.md", "README.zh-CN.md"))
    assert english - {"README.zh-CN.md"} == chinese - {"README.md"}


def test_the_readme_shows_the_two_commands_on_its_first_screen() -> None:
    first_screen = "\n".join(read("README.md").splitlines()[:30])
    for needed in ("make start", "make test", "/api-ws/v1/realtime", "docs/demo.png"):
        assert needed in first_screen


def test_every_setting_in_the_readme_exists() -> None:
    known = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", read(".env.example"), re.MULTILINE))
    mentioned = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)`", read("README.md")))
    assert mentioned <= known


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [(name, match[0]) for name, text in tracked_texts() for match in MACHINE_PATHS.finditer(text)]
    assert not [(name, path) for name, path in found if name != "uv.lock"]


def test_only_the_lock_file_names_a_registry() -> None:
    assert not [name for name, text in tracked_texts() if name not in MAY_NAME_REGISTRIES and REGISTRIES.search(text)]
