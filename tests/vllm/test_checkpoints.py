"""Layouts and number formats of checkpoints, in real vLLM and in transformers: what loads, and what is refused.

The weights are the tiny checkpoint's, converted (`-hf`), in bf16, or moved beyond what half precision holds. In vLLM
each takes an engine of its own, which is closed before the next one starts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from qwen3_asr_server.domain import Hypothesis, StepKind, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines.transformers import TransformersEngine
from qwen3_asr_server.engines.vllm import VllmEngine
from qwen3_asr_server.errors import EngineNotReady
from support.checkpoints import beyond_half, convert_checkpoint, copy_checkpoint, write_defaults_out
from support.tiny_speech import CHECKPOINT, tiny_clips

pytestmark = pytest.mark.asyncio(loop_scope="session")

Record = Callable[[str, object], None]
CLIPS = tiny_clips()[:40]
SAME = 0.9
"""Of the texts; a choice between two tokens that are almost equally likely may fall otherwise in 16 bits."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "original": CHECKPOINT,
        "converted": convert_checkpoint(CHECKPOINT, root / "converted"),
        "wordy": write_defaults_out(copy_checkpoint(CHECKPOINT, root / "wordy", "bfloat16")),
        "bf16": copy_checkpoint(CHECKPOINT, root / "bf16", "bfloat16"),
        "large": copy_checkpoint(CHECKPOINT, root / "large", "bfloat16", beyond_half),
        "large converted": convert_checkpoint(CHECKPOINT, root / "large-converted", "bfloat16", beyond_half),
    }


async def heard_by(engine: VllmEngine | TransformersEngine) -> list[Hypothesis | None]:
    heard = []
    for clip in CLIPS:
        stream = engine.open_stream(StreamOptions())
        heard.append(await stream.step(clip.samples, StepKind.FINAL))
        await stream.close()
    return heard


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wanted(engine: VllmEngine) -> Sequence[Hypothesis | None]:
    """What vLLM hears with the checkpoint as it is, at fp32."""
    return await heard_by(engine)


def share_of_same(wanted: Sequence[Hypothesis | None], got: Sequence[Hypothesis | None]) -> float:
    return sum(left == right for left, right in zip(wanted, got, strict=True)) / len(wanted)


@pytest.mark.parametrize(
    ("folder", "dtype", "loaded", "share"),
    [
        ("original", "float", "float32", 1),
        ("converted", "auto", "float32", 1),
        ("wordy", "auto", "bfloat16", SAME),
        ("bf16", "half", "float16", SAME),
        ("large converted", "auto", "bfloat16", SAME),
        ("large", "auto", "bfloat16", SAME),
    ],
)
async def test_transformers_loads(
    folders: dict[str, Path],
    wanted: Sequence[Hypothesis | None],
    folder: str,
    dtype: str,
    loaded: str,
    share: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = TransformersEngine(EngineOptions(str(folders[folder]), dtype, decode_timeout_s=60))
    with caplog.at_level("INFO"):
        await engine.start()
    assert caplog.records[-1].dtype == loaded  # type: ignore[attr-defined]
    assert share_of_same(wanted, await heard_by(engine)) >= share
    await engine.stop()


@pytest.mark.parametrize("folder", ["large", "large converted"])
async def test_transformers_refuses_weights_that_half_precision_spoils(folders: dict[str, Path], folder: str) -> None:
    engine = TransformersEngine(EngineOptions(str(folders[folder]), "half", decode_timeout_s=60))
    with pytest.raises(EngineNotReady, match="MODEL_DTYPE"):
        await engine.start()


@pytest.mark.parametrize("folder", ["missing", "."])
async def test_transformers_says_that_there_are_no_weights(tmp_path: Path, folder: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    engine = TransformersEngine(EngineOptions(str(tmp_path / folder)))
    with pytest.raises(EngineNotReady) as refusal:
        await engine.start()
    assert str(tmp_path) not in refusal.value.message


@pytest.mark.parametrize(
    ("folder", "dtype", "loaded"), [("large converted", "auto", "bfloat16"), ("bf16", "half", "float16")]
)
async def test_vllm_loads(
    folders: dict[str, Path],
    wanted: Sequence[Hypothesis | None],
    folder: str,
    dtype: str,
    loaded: str,
    record_property: Record,
) -> None:
    """The converted layout, and bf16 weights: as they are with `auto`, and in `half` where that can hold them."""
    engine = VllmEngine(EngineOptions(str(folders[folder]), dtype, decode_timeout_s=60))
    await engine.start()
    assert str(engine.core.vllm.model_config.dtype) == f"torch.{loaded}"
    share = share_of_same(wanted, await heard_by(engine))
    await engine.stop()
    record_property("figure", f"{folder}, {dtype}: {share:.0%} of {len(CLIPS)} texts are those of fp32")
    assert share >= SAME


async def test_vllm_refuses_weights_that_half_precision_spoils(folders: dict[str, Path]) -> None:
    engine = VllmEngine(EngineOptions(str(folders["large"]), "half", decode_timeout_s=60))
    with pytest.raises(EngineNotReady, match="MODEL_DTYPE"):
        await engine.start()
