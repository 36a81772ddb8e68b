import sys

import pytest

from qwen3_asr_server.protocols import load_protocol, protocol_names


def test_every_module_without_an_underscore_is_a_protocol() -> None:
    names = protocol_names()
    assert "dashscope_realtime" in names
    assert names == sorted(names)
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("name", protocol_names())
def test_a_protocol_has_the_name_of_its_module(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name
    assert protocol.path.startswith("/")
    assert not protocol.path.endswith("/")


@pytest.mark.parametrize("name", ["grpc", "_base", "", "..config"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="dashscope_realtime") as raised:
        load_protocol(name)
    assert repr(name) in str(raised.value)
    assert f"qwen3_asr_server.protocols.{name}" not in sys.modules or name == "_base"
