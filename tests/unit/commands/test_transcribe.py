"""The command `transcribe` with an engine that answers at once: what it writes, refuses, tells and returns."""

import argparse
import asyncio
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_asr_server.commands import transcribe as command
from qwen3_asr_server.commands._here import Here, rendered
from qwen3_asr_server.commands._jobs import Misused, Wishes, jobs_of
from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import Hypothesis, Samples, StepKind, StreamOptions, Word
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.runtime.media import MediaLimits
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.text import subtitles
from qwen3_asr_server.text.transcript import Segment, Transcript
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, FakeStream
from support.media_files import KINDS, write_media
from support.recorded import tones

WAV = next(kind for kind in KINDS if kind.name == "wav")
SPEECH = tones((0.5, 0.0), (0.96, 0.3), (1.5, 0.0))
TEXT = "vivi vivi vivi\n"


class OneAtLast(FakeEngine):
    """Answers what is loudest only when all else was answered."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.quiet = asyncio.Event()

    def open_stream(self, options: StreamOptions) -> FakeStream:
        stream = super().open_stream(options)
        step = stream.step

        async def ordered(audio: Samples, kind: StepKind) -> Hypothesis | None:
            heard = await step(audio, kind)
            if np.abs(audio).max() > 0.35:
                await self.quiet.wait()
            assert heard is not None
            self.order.append(heard.text.split()[0])
            if len(self.order) == 2:
                self.quiet.set()
            return heard

        stream.step = ordered  # type: ignore[method-assign]
        return stream


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_media(tmp_path / "talk.wav", WAV, SPEECH[:, None])


def run(*files: str | Path, engine: FakeEngine | None = None, limits: MediaLimits | None = None, **wishes: Any) -> int:
    """Run the command; afterwards the engine is stopped."""
    engine = engine or FakeEngine()
    services = Services(Settings(_env_file=None), engine=engine, vad=EnergyVad())
    asked = Wishes([Path(file) for file in files], **wishes)
    try:
        return command.transcribe_files(Here(services, limits or MediaLimits()), asked)
    finally:
        assert not engine.running
        assert engine.open_streams == 0
        assert not list(Path().glob(".*"))


def names() -> set[str]:
    return {path.name for path in Path().iterdir()}


# What it writes


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("text", "talk.txt"),
        ("json", "talk.json"),
        ("srt", "talk.srt"),
        ("vtt", "talk.vtt"),
        ("verbose_json", "talk.json"),
    ],
)
def test_it_writes_beside_the_recording(talk: Path, form: Any, name: str, capfdbinary: Any) -> None:
    assert run(talk, form=form) == 0
    assert names() == {"talk.wav", name}
    written = Path(name).read_bytes()
    assert TEXT.strip().encode() in written
    assert written.endswith(b"\n")
    assert capfdbinary.readouterr() == (b"", b"")
    assert run(talk, form=form, stdout=True) == 0
    assert capfdbinary.readouterr().out == written


def test_a_folder_for_the_results_is_made(talk: Path) -> None:
    assert run(talk, output_dir=Path("new/texts")) == 0
    assert Path("new/texts/talk.txt").read_text() == TEXT
    assert names() == {"talk.wav", "new"}


@pytest.mark.parametrize("wishes", [{"stdout": True}, {"output_dir": Path("-")}])
def test_standard_output_has_a_line_a_file(talk: Path, capsys: Any, wishes: dict[str, Any]) -> None:
    assert run(talk, talk, **wishes) == 0
    assert capsys.readouterr().out == TEXT * 2
    assert names() == {"talk.wav"}


def test_files_go_side_by_side_and_come_out_in_their_order(talk: Path, capsys: Any) -> None:
    """The first waits for what only the second can give: its turn at the engine."""
    slow = write_media(Path("slow.wav"), WAV, tones((0.96, 0.4))[:, None])
    engine = OneAtLast()
    assert run(slow, talk, talk, engine=engine, stdout=True) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert others == [TEXT.strip()] * 2
    assert first != TEXT.strip()
    assert engine.order[-1] == first.split()[0]


def test_the_engine_is_started_once_and_told_what_was_asked(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    monkeypatch.setattr(FakeEngine, "start", _counted(FakeEngine.start, starts))
    second = write_media(Path("second.wav"), WAV, SPEECH[:, None])
    engine = FakeEngine()
    assert run(talk, second, engine=engine, language="zh", context="Ouagadougou") == 0
    assert len(starts) == 1
    assert [(options.language, options.context) for options in engine.opened] == [("zh", "Ouagadougou")] * 2


def test_silence_gives_an_empty_text() -> None:
    write_media(Path("silence.wav"), WAV, np.zeros((16_000, 1), np.float32))
    assert run("silence.wav") == 0
    assert Path("silence.txt").read_text() == "\n"


def test_channels_are_kept_apart_when_asked(capsys: Any) -> None:
    left, right = tones((0.5, 0.3), (2.5, 0.0)), tones((1.5, 0.0), (0.5, 0.3), (1.0, 0.0))
    write_media(Path("call.wav"), replace(WAV, channels=2), np.stack([left, right], axis=1))
    assert run("call.wav", channels=True, stdout=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["[0]", "[1]"]
    assert run("call.wav", stdout=True) == 0
    assert "[" not in capsys.readouterr().out


def test_a_silent_channel_leaves_the_others_their_numbers(capsys: Any) -> None:
    right = tones((0.5, 0.3), (1.0, 0.0))
    write_media(Path("call.wav"), replace(WAV, channels=2), np.stack([np.zeros_like(right), right], axis=1))
    assert run("call.wav", channels=True, stdout=True) == 0
    assert capsys.readouterr().out.startswith("[1] ")
    assert run("call.wav", channels=True, stdout=True, form="json") == 0
    silent, spoken = json.loads(capsys.readouterr().out)["channels"]
    assert silent == {"channel": 0, "text": ""}
    assert spoken["text"]


# Forms

CALL = Transcript(
    (
        Segment("hello there", 0, 16_000, 0, "en", (Word("hello", 0, 8_000), Word("there", 8_000, 16_000))),
        Segment("你好", 4_000, 32_000, 1, "zh", (Word("你好", 4_000, 32_000),)),
    ),
    48_000,
    channels=(0, 1, 2),
)


def test_text_of_channels_has_a_line_a_segment() -> None:
    assert rendered(CALL, Wishes([])) == "[0] hello there\n[1] 你好\n"
    assert rendered(CALL.of_channel(1), Wishes([], channels=True)) == "你好\n"


@pytest.mark.parametrize("channels", [False, True])
def test_json_says_who_said_what_where_channels_are_apart(channels: bool) -> None:
    line = rendered(CALL, Wishes([], form="verbose_json", words=True, channels=channels))
    answer = json.loads(line)
    assert "你好" in line
    assert line.count("\n") == 1
    assert [word["word"] for word in answer["words"]] == ["hello", "你好", "there"]
    assert [word.get("channel") for word in answer["words"]] == ([0, 1, 0] if channels else [None] * 3)
    assert [segment.get("channel") for segment in answer["segments"]] == ([0, 1] if channels else [None, None])
    short = json.loads(rendered(CALL, Wishes([], form="json", channels=channels)))
    for found in (answer, short):
        assert found.get("channels") == (
            [{"channel": 0, "text": "hello there"}, {"channel": 1, "text": "你好"}, {"channel": 2, "text": ""}]
            if channels
            else None
        )


# What fails


def test_what_fails_keeps_nobody_from_their_turn(talk: Path, capsys: Any) -> None:
    Path("notes.wav").write_text("no audio in here, only words")
    Path("empty.wav").touch()
    Path("folder").mkdir()
    Path("odd\x1bname.wav").symlink_to("nowhere")
    assert run("missing.wav", "notes.wav", "empty.wav", "folder", "odd\x1bname.wav", talk) == 1
    told = capsys.readouterr()
    assert told.out == ""
    at_once, later = told.err.splitlines()[:3], told.err.splitlines()[3:]
    assert at_once == [
        "qwen3-asr-server: missing.wav: No such file or directory.",
        "qwen3-asr-server: folder: Is a folder; name the files in it.",
        "qwen3-asr-server: odd?name.wav: No such file or directory.",
    ]
    assert sorted(later) == [
        "qwen3-asr-server: empty.wav: The file is empty.",
        "qwen3-asr-server: notes.wav: The file is of an unknown format, or its beginning or end is missing.",
    ]
    assert Path("talk.txt").read_text() == TEXT


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (MediaLimits(max_bytes=1024), "The file is larger than 1024 bytes."),
        (MediaLimits(max_audio_s=1), "The file has more than 1 s of audio."),
    ],
)
def test_what_is_over_a_limit_is_refused(talk: Path, capsys: Any, limits: MediaLimits, reason: str) -> None:
    assert run(talk, limits=limits) == 1
    assert capsys.readouterr().err == f"qwen3-asr-server: {talk}: {reason}\n"
    assert names() == {"talk.wav"}


def test_nothing_is_written_over_unless_forced(talk: Path, capsys: Any) -> None:
    Path("talk.txt").write_text("by hand")
    engine = FakeEngine(start_failure=EngineNotReady("nobody needs it"))
    assert run("talk.wav", engine=engine) == 1
    assert capsys.readouterr().err == "qwen3-asr-server: talk.txt is there already; --force replaces it.\n"
    assert Path("talk.txt").read_text() == "by hand"
    assert run(talk, force=True) == 0
    assert Path("talk.txt").read_text() == TEXT


def test_what_comes_into_being_meanwhile_is_kept(talk: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_text(transcript: Transcript) -> str:
        Path("talk.txt").write_text("by hand")
        return transcript.text

    monkeypatch.setattr(subtitles, "as_text", as_text)
    assert run("talk.wav") == 1
    assert "talk.txt cannot be written: it has come into being meanwhile." in capsys.readouterr().err
    assert Path("talk.txt").read_text() == "by hand"


def test_a_disk_that_is_full_leaves_no_half_file(talk: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert run("talk.wav") == 1
    assert capsys.readouterr().err == "qwen3-asr-server: talk.txt cannot be written: No space left on device.\n"
    assert names() == {"talk.wav"}


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    talk: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # a test may run as root
    assert run("talk.wav", engine=FakeEngine(start_failure=EngineNotReady("nobody needs it"))) == 1
    assert capsys.readouterr().err == "qwen3-asr-server: talk.txt cannot be written: Permission denied.\n"


def test_a_result_whose_name_is_too_long_is_told_before_the_work(capsys: Any) -> None:
    long = f"{'a' * 251}.wav"
    Path(long).touch()
    assert run(long, form="json", engine=FakeEngine(start_failure=EngineNotReady("nobody needs it"))) == 1
    assert capsys.readouterr().err.endswith("a.json cannot be written: File name too long.\n")
    assert names() == {long}


def test_an_engine_that_does_not_start_is_for_the_caller(talk: Path) -> None:
    with pytest.raises(EngineNotReady, match="no weights"):
        run(talk, engine=FakeEngine(start_failure=EngineNotReady("no weights")))
    assert names() == {"talk.wav"}


# What is wrong with a command line


@pytest.mark.parametrize(
    ("files", "wishes", "reason"),
    [
        (["a.wav", "a.mp3"], {}, "a.txt would be written for more than one file."),
        (["a.wav", "../here/a.wav"], {}, "a.txt would be written for more than one file."),
        (["a.txt"], {"force": True}, "a.txt would be written over a recording."),
        (["a.wav", "b/a.wav"], {"output_dir": Path("c")}, "c/a.txt would be written for more than one file."),
        (["a.wav", "b.wav"], {"stdout": True, "form": "srt"}, "Only one srt fits on standard output."),
    ],
)
def test_jobs_that_are_in_one_anothers_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], wishes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(Misused) as caught:
        jobs_of(Wishes([Path(file) for file in files], **wishes))
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"language": "de"}, "The engine fake does not know the language de; it knows en, zh."),
        ({"output_dir": Path("talk.wav")}, "talk.wav is no folder and cannot be made: File exists."),
    ],
)
def test_wishes_that_cannot_be_met_are_status_2(talk: Path, capsys: Any, wishes: dict[str, Any], reason: str) -> None:
    assert run(talk, **wishes) == 2
    assert capsys.readouterr().err == f"qwen3-asr-server: {reason}\n"
    assert names() == {"talk.wav"}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["--stdout"], 2),
        (["a.wav", "--language", "klingon"], 2),
        (["a.wav", "--format", "docx"], 2),
        (["a.wav", "--stdout", "--output-dir", "b"], 2),
    ],
)
def test_nonsense_is_status_2(capsys: Any, arguments: list[str], status: int) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments)
    assert caught.value.code == status
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code"), [("en", "en"), ("English", "en"), ("zh-HK", "yue"), ("auto", None), ("Sichuan", "zh")]
)
def test_languages_go_by_codes_and_names(given: str, code: str | None) -> None:
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    command.add_arguments(parser)
    assert parser.parse_args(["a.wav", "--language", given]).language == code
    assert Wishes(**vars(parser.parse_args(["a.wav"]))) == Wishes([Path("a.wav")])


# What it tells


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("files", [1, 2])
def test_bars_are_for_people_and_go_away(talk: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, files: int) -> None:
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    named = [write_media(Path(f"[b]{number}.wav"), WAV, SPEECH[:, None]) for number in range(files)]
    assert run(*named, "gone.wav", stdout=True) == 1
    told = terminal.getvalue()
    assert "[b]0.wav" in told
    assert "3/3 s" in told
    assert ("all files" in told) == (files > 1)
    assert "qwen3-asr-server: gone.wav: No such file or directory." in told
    assert told.rpartition("\x1b[2K")[2] == "\x1b[?25h\r"  # erased, and the cursor is back
    assert capfd.readouterr().out == TEXT * files


@pytest.mark.parametrize("terminal", [True, False])
def test_nobody_is_shown_bars_who_does_not_look(talk: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(sys, "stderr", told := _Terminal() if terminal else io.StringIO())
    assert run("talk.wav", quiet=terminal) == 0
    assert told.getvalue() == ""


@pytest.mark.parametrize(
    ("wishes", "warnings"),
    [
        ({"context": "Ouagadougou"}, ["--context has no effect: the engine fake takes none."]),
        ({"words": True}, ["--words has no effect on the format text."]),
        ({"words": True, "form": "srt"}, []),
        ({"words": True, "context": "x", "quiet": True}, []),
    ],
)
def test_what_has_no_effect_is_told(talk: Path, capsys: Any, wishes: dict[str, Any], warnings: list[str]) -> None:
    assert run(talk, **wishes) == 0
    assert capsys.readouterr().err.splitlines() == [f"qwen3-asr-server: warning: {text}" for text in warnings]


def test_words_that_nobody_can_place_are_told(talk: Path, capsys: Any) -> None:
    assert run(talk, engine=FakeEngine(EngineOptions(), word_times=False), words=True, form="verbose_json") == 0
    assert "the engine fake has no word times, and WORD_TIMES is off" in capsys.readouterr().err


def test_a_recording_that_breaks_off_is_transcribed_and_told(capsys: Any) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (96_000, 1)).astype(np.float32)
    path = write_media(Path("talk.flac"), replace(WAV, container="flac", codec="flac"), noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(path) == 0
    assert (
        capsys.readouterr().err
        == "qwen3-asr-server: warning: talk.flac: The file breaks off; what is there has been transcribed.\n"
    )
    assert len(Path("talk.txt").read_text().split()) == 9


def _counted(start: Any, calls: list[object]) -> Any:
    async def counted(engine: FakeEngine) -> None:
        calls.append(engine)
        await start(engine)

    return counted
