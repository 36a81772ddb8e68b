"""The guard of tests/conftest.py: a test reaches this machine and no other."""

import asyncio
import socket

import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid", b"example.invalid"])
def test_other_machines_are_out_of_reach(host: str | bytes) -> None:
    with pytest.raises(RuntimeError, match="tests stay on this machine"):
        socket.create_connection((host, 80), timeout=1)


async def test_also_from_asyncio() -> None:
    with pytest.raises(RuntimeError, match="tests stay on this machine"):
        await asyncio.open_connection("192.0.2.1", 80)


def test_this_machine_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
