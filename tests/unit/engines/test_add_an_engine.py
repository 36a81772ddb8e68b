"""The tutorial's file runs as it stands in the page."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_asr_server import engines
from qwen3_asr_server.domain import StepKind, StreamOptions
from qwen3_asr_server.engines import engine_names, load_engine
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.errors import EngineNotReady, InvalidValue

PAGE = Path(__file__).parents[3] / "docs" / "add-an-engine.md"


async def test_the_page_s_engine_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code is not None
    (tmp_path / "parrot.py").write_text(code[1], encoding="utf-8")
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "qwen3_asr_server.engines.parrot", raising=False)

    assert "parrot" in engine_names()
    engine = load_engine("parrot", EngineOptions())
    assert engine.info.name == "parrot"
    with pytest.raises(EngineNotReady):
        engine.open_stream(StreamOptions())
    await engine.start()
    with pytest.raises(InvalidValue):
        engine.open_stream(StreamOptions(language="fr"))
    stream = engine.open_stream(StreamOptions())
    audio = np.repeat(np.array([0.0, 0.5], np.float32), 16_000)
    texts = []
    for samples, kind in ((16_000, StepKind.PARTIAL), (24_000, StepKind.PARTIAL), (32_000, StepKind.FINAL)):
        heard = await stream.step(audio[:samples], kind)
        assert heard is not None
        texts.append(heard.text)
    assert texts == ["", "sound for 0.50 seconds", "sound for 1.00 seconds"]
    await stream.close()
    await engine.stop()
