"""Results on disk: what is written is read again, also what an older server has written."""

import json
from pathlib import Path

import pytest

from qwen3_asr_server.domain import Word
from qwen3_asr_server.runtime._media_wire import MediaKind
from qwen3_asr_server.runtime.job_results import JobResult, ResultFolder
from qwen3_asr_server.runtime.job_values import JobWish
from qwen3_asr_server.text.transcript import Segment, Transcript

SPOKEN = Segment("Hello", 16_000, 32_000, 1, "en", (Word("Hello", 16_000, 24_000),), 0.9)


def result(*, cut_short: bool) -> JobResult:
    kind = MediaKind("wav", "pcm_s16le", 8000, 2)
    transcript = Transcript((SPOKEN,), 48_000, cut_short, (0, 1))
    return JobResult("form", "http://host/a", JobWish("m"), kind, (0, 1), transcript)


@pytest.mark.parametrize("cut_short", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, cut_short: bool) -> None:
    folder = ResultFolder(tmp_path)
    assert folder.read(folder.write(result(cut_short=cut_short))) == result(cut_short=cut_short)


def test_older_servers_did_not_note_whether_a_file_broke_off(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    path = tmp_path / f"{folder.write(result(cut_short=True))}.json"
    values = json.loads(path.read_text("utf-8"))
    del values["cut_short"]
    path.write_text(json.dumps(values), "utf-8")
    assert folder.read(path.stem) == result(cut_short=False)
