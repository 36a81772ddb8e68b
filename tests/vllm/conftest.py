"""One engine for all tests here: real vLLM on the processor, with the tiny checkpoint (`make test-vllm`).

Where vLLM is not installed nothing is collected. What other packages warn of is theirs; ours is checked elsewhere.
"""

import os
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines.vllm import VllmEngine
from support import process
from support.tiny_speech import CHECKPOINT

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
process.START_S = 300

OPTIONS = EngineOptions(model_path=str(CHECKPOINT), dtype="float", decode_timeout_s=60)


def pytest_configure(config: pytest.Config) -> None:
    # vLLM leaves its zmq context to the garbage collector; what that finds when all tests are over has no mark.
    config.addinivalue_line("filterwarnings", "default:Unclosed context:ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine() -> AsyncIterator[VllmEngine]:
    """A started engine whose worker counts what its encoder is given."""
    made = VllmEngine(OPTIONS, vllm_arguments={"worker_extension_cls": "support.encoder_count.EncoderCount"})
    await made.start()
    yield made
    await made.stop()
