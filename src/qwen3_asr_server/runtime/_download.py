"""A file from a web server, as it comes, within limits of size, time and redirects.

Every connection, those after a redirect too, goes through `_addresses`. Proxies, cookies and passwords are not used,
and compressed answers are refused: they may be far larger than they look. It stores nothing. Used by `sources`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpcore
import httpx

from qwen3_asr_server.errors import InvalidValue, SourceRefused, SourceUnreachable
from qwen3_asr_server.runtime._addresses import GuardedNetwork, Network, Resolver, resolve
from qwen3_asr_server.runtime._storing import too_large

_HEADERS: Final = ((b"User-Agent", b"qwen3-asr-server"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity"))
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_URL_BYTES: Final = 8192
_FAILURES: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What a download may cost, and where it may come from."""

    max_redirects: int = 5
    connect_s: float = 10
    """Longest wait for one address of the server, in seconds."""
    stall_s: float = 30
    """Longest wait for the next bytes, in seconds."""
    total_s: float = 1800
    """Longest download, redirects included, in seconds."""
    trusted_networks: tuple[Network, ...] = ()
    """Networks to fetch from although they are not public."""
    resolver: Resolver = resolve
    """Finds the addresses of a host."""


async def download(text: str, max_bytes: int, limits: WebLimits, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Fetch a URL and pass on what comes, in order.

    Raises:
        InvalidValue: it is no http(s) URL.
        SourceRefused: it leads where the server does not fetch from, at once or by a redirect.
        SourceUnreachable: it leads to nothing, or not in time.
        TooLarge: there is more than `max_bytes`.
    """
    url = _parsed(text)
    network = GuardedNetwork(limits.trusted_networks, limits.resolver)
    try:
        async with (
            asyncio.timeout(limits.total_s),
            httpcore.AsyncConnectionPool(network_backend=network, max_connections=1) as pool,
        ):
            for _ in range(limits.max_redirects + 1):
                location = await _fetch(pool, url, max_bytes, limits, write)
                if location is None:
                    return
                url = _parsed(_joined(url, location))
    except (TimeoutError, httpcore.TimeoutException):
        raise SourceUnreachable("The URL's server took too long.") from None
    except _FAILURES:
        raise SourceUnreachable("The URL's server cannot be reached, or broke off.") from None
    raise SourceUnreachable("The URL is redirected too often.")


async def _fetch(
    pool: httpcore.AsyncConnectionPool,
    url: httpx.URL,
    max_bytes: int,
    limits: WebLimits,
    write: Callable[[bytes], Awaitable[None]],
) -> str | None:
    """Follow one URL; return where it is redirected to, or None when all has been written."""
    seconds = {"connect": limits.connect_s, "read": limits.stall_s, "write": limits.stall_s, "pool": limits.connect_s}
    headers = [(b"Host", url.netloc), *_HEADERS]
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    async with pool.stream("GET", target, headers=headers, extensions={"timeout": seconds}) as response:
        answered = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in answered:
            return answered["location"]
        if response.status != 200:
            raise SourceUnreachable(f"The URL's server answered with status {response.status}.", status=response.status)
        if answered.get("content-encoding", "identity").lower() != "identity":
            raise SourceUnreachable("The URL's server sends the file compressed, which was not asked for.")
        length = answered.get("content-length", "")
        left_bytes = max_bytes
        if length.isdecimal() and int(length) > max_bytes:
            raise too_large(max_bytes)
        async for chunk in response.aiter_stream():
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise too_large(max_bytes)
            await write(chunk)
    return None


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except (httpx.InvalidURL, ValueError):  # the latter from `urljoin`, which reads addresses in its own way
        raise SourceUnreachable("The URL's server redirects to something that is no URL.") from None


def _parsed(text: str | httpx.URL) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeEncodeError):
        raise InvalidValue("The URL cannot be read.") from None
    if url.scheme not in ("http", "https") or not url.raw_host or (url.port or 0) > 65535:
        raise InvalidValue("The URL is not http:// or https:// with a host.")
    if url.userinfo:
        raise SourceRefused("URLs with a user name or a password are not fetched.")
    if len(url.raw_path) > _MOST_URL_BYTES:
        raise InvalidValue("The URL is too long.")
    return url
