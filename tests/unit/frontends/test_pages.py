"""The pages and what they load: all of it served by us, nothing fetched from elsewhere."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import FastAPI

from qwen3_asr_server.frontends import _errors, pages

BASE = "http://asr:8001"

# What a browser would fetch: addresses in markup, imports, and calls. Namespaces and comments are not fetched.
FETCHED = re.compile(
    r"""(?:\bsrc=|\bhref=|\bfrom\s|\bimport\s*\(?|\bfetch\(|\bURL\(|url\(|@import\s)\s*["'](?P<address>[^"'\s)]+)"""
)


@pytest.fixture
async def http() -> httpx.AsyncClient:
    app = FastAPI(docs_url=None, redoc_url=None)
    _errors.install(app)
    app.include_router(pages.router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)


class _Links(HTMLParser):
    """Collects what a page loads, and counts scripts and styles that stand inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link":
            self.loaded.append(values["href"] or "")
        elif values.get("src"):
            self.loaded.append(values["src"] or "")
        elif tag in ("script", "style"):
            self.inline += 1
        self.inline += sum(name.startswith("on") or name == "style" for name in values)


def read(html: str) -> _Links:
    links = _Links()
    links.feed(html)
    return links


@pytest.mark.parametrize("path", ["/demo", "/docs"])
async def test_everything_a_page_loads_is_here(http: httpx.AsyncClient, path: str) -> None:
    page = await http.get(path)
    links = read(page.text)
    assert links.loaded
    for link in links.loaded:
        address = urljoin(str(page.url), link)
        assert address.startswith(BASE)
        assert (await http.get(address)).status_code == 200, link
    assert links.inline == 0, "the content security policy would not run it"


@pytest.mark.parametrize("path", ["/demo", "/docs"])
async def test_a_browser_may_fetch_nothing_from_elsewhere(http: httpx.AsyncClient, path: str) -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in (await http.get(path)).headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'self'"
    assert "script-src" not in policy
    assert not re.search(r"https?:|\*", " ".join(policy.values()))


async def test_no_file_of_ours_names_an_address_elsewhere(http: httpx.AsyncClient) -> None:
    ours = [file for file in pages._WEB.iterdir() if file.is_file()]
    assert {file.name for file in ours} >= {"index.html", "docs.html", "docs.js"}
    for file in ours:
        text = file.read_text("utf-8")
        assert not [found["address"] for found in FETCHED.finditer(text) if "//" in found["address"]], file.name
        hosts = set(re.findall(r"(?:https?|wss?)://([\w.-]+)", text))
        assert hosts <= {"www.w3.org", "localhost"}, file.name


def test_the_check_sees_addresses() -> None:
    assert FETCHED.search('<script src="//cdn.example/x.js">')["address"] == "//cdn.example/x.js"  # type: ignore[index]
    assert FETCHED.search('import x from "https://cdn.example/x.js"')


async def test_the_reference_asks_no_validator(http: httpx.AsyncClient) -> None:
    assert "validatorUrl: null" in (await http.get("/docs/docs.js")).text


async def test_swagger_s_style_sheet_loads_nothing(http: httpx.AsyncClient) -> None:
    css = (await http.get("/docs/swagger-ui.css")).text
    assert "@import" not in css
    assert all(address.startswith("data:") for address in re.findall(r"""url\(["']?([^"')]+)""", css))


async def test_swagger_s_licence_is_kept() -> None:
    assert "Apache License" in (pages._SWAGGER / "LICENSE").read_text("utf-8")
    assert (pages._SWAGGER / "NOTICE").exists()


async def test_the_demo_has_one_address(http: httpx.AsyncClient) -> None:
    answer = await http.get("/demo/")
    assert answer.status_code == 307
    assert urljoin(str(answer.url), answer.headers["location"]) == f"{BASE}/demo"


@pytest.mark.parametrize(
    "path",
    [
        "/demo/nothing.js",
        "/demo/..%2fpages.py",
        "/demo/%2e%2e%2f__init__.py",
        "/demo/..%5cpages.py",
        "/demo/vendor",
        "/demo/vendor/swagger-ui/LICENSE",
        "/docs/..%2f..%2findex.html",
    ],
)
async def test_only_files_of_the_page_s_own_folder_are_served(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404
