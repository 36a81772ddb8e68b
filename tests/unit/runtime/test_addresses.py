"""The guard of fetched URLs: which addresses are public, and connections to judged addresses only."""

import asyncio
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import SourceRefused, SourceUnreachable
from qwen3_asr_server.runtime._addresses import Address, GuardedNetwork, is_allowed, resolve

PUBLIC = ("1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "223.255.255.255", "2606:4700::1111", "2a00::1")

REFUSED = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.0.1", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    # metadata services of clouds
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"),
    *(
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fc00::1",
    ),
    *("fd12:3456::1", "fec0::1", "ff02::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "5f00::1", "fe80::1%lo", "2606:4700::1%lo"),
)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_allowed(text: str) -> None:
    assert is_allowed(ip_address(text))


@pytest.mark.parametrize("text", REFUSED)
def test_all_others_are_refused(text: str) -> None:
    assert not is_allowed(ip_address(text))


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_changes_nothing(address: IPv4Address) -> None:
    for wrapped in (IPv6Address(f"::ffff:{address}"), IPv6Address(f"64:ff9b::{address}")):
        assert is_allowed(wrapped) == is_allowed(address)
        assert is_allowed(wrapped, [ip_network("10.0.0.0/8")]) == is_allowed(address, [ip_network("10.0.0.0/8")])


@given(st.ip_addresses())
def test_what_is_allowed_is_global(address: Address) -> None:
    if is_allowed(address) and not (isinstance(address, IPv6Address) and address in ip_network("64:ff9b::/96")):
        assert address.is_global or getattr(address, "ipv4_mapped", None)
        assert not address.is_multicast


@pytest.mark.parametrize(
    ("text", "trusted", "allowed"),
    [
        ("10.1.2.3", "10.1.0.0/16", True),
        ("10.2.2.3", "10.1.0.0/16", False),
        ("::ffff:10.1.2.3", "10.1.0.0/16", True),
        ("127.0.0.1", "127.0.0.1/32", True),
        ("127.0.0.2", "127.0.0.1/32", False),
        ("::1", "127.0.0.1/32", False),
        ("fd00::1", "fd00::/8", True),
    ],
)
def test_trusted_networks_are_allowed_too(text: str, trusted: str, allowed: bool) -> None:
    assert is_allowed(ip_address(text), [ip_network(trusted)]) == allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
async def test_hosts_that_mean_this_machine_are_refused(host: str) -> None:
    with pytest.raises(SourceRefused):
        await GuardedNetwork(()).connect_tcp(host, 80)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
async def test_the_system_reads_odd_numbers_before_they_are_judged(host: str) -> None:
    async def by_system(host: str, port: int) -> Sequence[Address]:
        return [IPv4Address(socket.inet_aton(host))]

    with pytest.raises(SourceRefused):
        await GuardedNetwork((), by_system).connect_tcp(host, 80)


@pytest.mark.parametrize("found", [["127.0.0.1", "1.1.1.1"], ["1.1.1.1", "10.0.0.1"], ["1.1.1.1", "::1"]])
async def test_one_bad_address_of_a_host_is_enough(found: list[str]) -> None:
    with pytest.raises(SourceRefused):
        await GuardedNetwork((), answers(found)).connect_tcp("rebound.example", 80)


async def test_the_judged_address_is_the_one_connected_to() -> None:
    asked = []

    async def rebinding(host: str, port: int) -> Sequence[Address]:
        asked.append(host)
        return [ip_address("127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    async with listening() as port:
        network = GuardedNetwork([ip_network("127.0.0.1")], rebinding)
        stream = await network.connect_tcp("rebinding.example", port)
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
        await stream.aclose()
        assert asked == ["rebinding.example"]
        with pytest.raises(SourceRefused):
            await network.connect_tcp("rebinding.example", port)


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with listening() as port:
        network = GuardedNetwork([ip_network("127.0.0.0/8")], answers(["127.0.0.9", "127.0.0.1"]))
        stream = await network.connect_tcp("two.example", port)
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
        await stream.aclose()
    with pytest.raises(httpcore.ConnectError):
        await network.connect_tcp("two.example", port)


@pytest.mark.parametrize("problem", [OSError, UnicodeError, None])
async def test_an_unknown_host_is_unreachable(problem: type[Exception] | None) -> None:
    async def nowhere(host: str, port: int) -> Sequence[Address]:
        if problem is not None:
            raise problem
        return []

    with pytest.raises(SourceUnreachable):
        await GuardedNetwork((), nowhere).connect_tcp("nowhere.example", 80)


async def test_sockets_of_this_machine_are_refused() -> None:
    with pytest.raises(SourceRefused):
        await GuardedNetwork(()).connect_unix_socket("/run/docker.sock")


async def test_the_system_finds_this_machine() -> None:
    assert ip_address("127.0.0.1") in await resolve("localhost", 80)


async def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    asked, answered = threading.Event(), threading.Event()

    def unanswered(*_: object, **__: object) -> list[object]:
        asked.set()
        answered.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    looking = asyncio.create_task(resolve("slow.example", 80))
    try:
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(asked.wait, 5)
            assert not looking.done()
    finally:
        answered.set()
    assert await looking == []


def answers(found: list[str]):  # type: ignore[no-untyped-def]
    async def resolver(host: str, port: int) -> Sequence[Address]:
        return [ip_address(text) for text in found]

    return resolver


class listening:
    """A server on 127.0.0.1 only; entering it gives its port."""

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()
