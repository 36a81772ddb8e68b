"""Pages for people: the microphone demo and the API reference, with everything they load.

Static files of this package; a content security policy forbids the browser to fetch anything from elsewhere.
The demo is open to all (a page cannot show a key before it is loaded), the reference is not (`_auth`). Knows
nothing of the runtime.
"""

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_WEB: Final = Path(__file__).parent.parent / "web"
_SWAGGER: Final = _WEB / "vendor" / "swagger-ui"
_HEADERS: Final = {
    # Swagger draws with inline styles and data images; scripts come from files of ours only.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/demo")
async def demo() -> FileResponse:
    """Serve the microphone page."""
    return _file(_WEB, "index.html")


@router.get("/demo/")
async def demo_with_slash() -> RedirectResponse:
    """Send to the address that the page's relative links count on."""
    return RedirectResponse("../demo", status_code=307)


@router.get("/demo/{name}")
async def demo_file(name: str) -> FileResponse:
    """Serve a file that the microphone page loads."""
    return _file(_WEB, name)


@router.get("/docs")
async def reference() -> FileResponse:
    """Serve the API reference."""
    return _file(_WEB, "docs.html")


@router.get("/docs/{name}")
async def reference_file(name: str) -> FileResponse:
    """Serve a file that the API reference loads."""
    return _file(_WEB if name == "docs.js" else _SWAGGER, name)


def _file(folder: Path, name: str) -> FileResponse:
    # A route's `{name}` holds no slash; what is left to refuse are dot files and names that do not exist.
    path = folder / name
    if name.startswith(".") or "\\" in name or not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, headers=_HEADERS)
