"""Which network addresses the server may fetch from, and connections to nowhere else.

A URL comes from a stranger, so the host it names is looked up once, every address is judged, and the connection goes to
one of those very addresses: a name that means something else a moment later gains nothing. Callers get a network
backend for `httpcore`, so that every connection passes here, those after a redirect too.

It knows no URL and no HTTP. Used by `sources`.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpcore

from qwen3_asr_server.errors import SourceRefused, SourceUnreachable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]

_NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata service at 100.100.100.200
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's host agent
            "169.254.0.0/16",  # link-local; metadata services at 169.254.169.254
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved, broadcast
            "2001::/23",  # protocol assignments, with Teredo tunnels
            "2001:db8::/32",
            "2002::/16",  # 6to4 tunnels: an IPv4 address within
            "3fff::/20",
        ),
    )
)
"""From the IANA registries of special addresses. Not `is_global`, whose meaning changed between versions of Python."""

_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
_IPV4_WITHIN: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv6 addresses that mean the IPv4 address in their last 32 bits: mapped ones and those of NAT64."""


def is_allowed(address: Address, trusted: Iterable[Network] = ()) -> bool:
    """Tell whether the server may connect to an address.

    Args:
        address: to be judged.
        trusted: networks that are allowed although they are not public.
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if any(address in network for network in _IPV4_WITHIN):
            address = IPv4Address(int(address) & 0xFFFF_FFFF)
    if any(address in network for network in trusted):
        return True
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Return the addresses of a host, as the system orders them.

    Raises:
        OSError: there are none.
    """
    with suppress(ValueError):
        return [ip_address(host)]
    # A thread of its own: name servers that do not answer hold it for long, and the loop's few serve live audio too.
    thread = ThreadPoolExecutor(1, "resolve")
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(thread, look_up)
    finally:
        thread.shutdown(wait=False)
    return list(dict.fromkeys(ip_address(address[0]) for _, _, _, _, address in found))


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connections to allowed addresses only.

    Args:
        trusted: networks that are allowed although they are not public.
        resolver: finds the addresses of a host.
    """

    def __init__(self, trusted: Sequence[Network], resolver: Resolver = resolve) -> None:
        self._trusted = trusted
        self._resolve = resolver
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of `host` that answers.

        Raises:
            SourceRefused: one of its addresses is not allowed.
            SourceUnreachable: it has no address.
            httpcore.NetworkError: no address answers.
            httpcore.TimeoutException: none answers in time.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except (OSError, UnicodeError):
            addresses = ()
        if not addresses:
            raise SourceUnreachable("The URL's host is not known.")
        if not all(is_allowed(address, self._trusted) for address in addresses):
            raise SourceRefused("The URL leads to an address that this server does not fetch from.")
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                continue
        return await self._network.connect_tcp(str(addresses[-1]), port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface is httpcore's
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: no URL means a socket of this machine."""
        raise SourceRefused("The URL leads to an address that this server does not fetch from.")

    async def sleep(self, seconds: float) -> None:
        """Wait, as the interface demands."""
        await asyncio.sleep(seconds)
