"""Human speech through the unmodified SDK, Silero and the embedded engine.

The server may add no error of its own: its finals are what the engine answers when it is fed the same
slices directly, whatever the packet size, the pacing and the mode. Figures are printed (`pytest -s`).
"""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np
import pytest

from qwen3_asr_server.domain import GRID_SAMPLES, Samples, TurnDetection
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.vad import load_vad
from support import speech
from support.invariants import COMPLETED, TEXT, Frame, assert_finished
from support.process import ServerProcess, running_server
from support.reference import Slices, recognise, slices
from support.sdk_client import TEXT_ONLY, Recorder, conversation, send

Record = Callable[[str, object], None]
TURN = TurnDetection(threshold=0.5, silence_ms=800)
"""What the wire's defaults mean."""
CLIPS = speech.prompts()
GROUPS = [CLIPS[at : at + 12] for at in range(0, len(CLIPS), 12)]
"""Prompts that are streamed in one session, one after the other."""
GAP = np.zeros(round(1.2 * speech.RATE), np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(POCKETSPHINX_DECODERS="4") as running:
        yield running


def session_audio(clips: Sequence[speech.Clip]) -> Samples:
    return np.concatenate([part for clip in clips for part in (clip.samples, GAP)])


async def directly(items: list[Slices]) -> list[list[str]]:
    """Return what the engine makes of these slices without the server."""
    engine = load_engine("pocketsphinx", EngineOptions(max_decoders=2, decode_timeout_s=60))
    await engine.start()
    try:
        return await asyncio.gather(*(recognise(engine, slices_) for slices_ in items))
    finally:
        await engine.stop()


def stream(
    server: ServerProcess, samples: Samples, *, manual: bool = False, packet_bytes: int = 3200, live: bool = False
) -> Recorder:
    """Send audio through the SDK and return what came back, checked."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=not manual)
        send(client, speech.pcm16(samples), packet_bytes, live=live)
        if manual:
            client.commit()
        client.end_session(timeout=300)
    assert_finished(recorder.frames, audio_ms=len(samples) / 16)
    return recorder


async def test_the_server_adds_no_error_to_the_engine(server: ServerProcess, record_property: Record) -> None:
    """Finals over the SDK equal the engine fed directly, word for word, in sessions of every packet size."""
    sizes = [3200, 641, 6400, 928, 32_000, 15 * 1024 * 1024, 1001]
    audio = [session_audio(group) for group in GROUPS]
    expected = await directly([slices(samples, TURN, load_vad()) for samples in audio])
    with ThreadPoolExecutor(2) as pool:
        got = list(
            pool.map(
                lambda job: stream(server, job[0], packet_bytes=job[1]).transcripts, zip(audio, sizes, strict=True)
            )
        )
    assert got == expected
    assert sum(len(clip.text.split()) for clip in CLIPS) >= 300
    assert all(any(texts) for texts in got), "equal because both are empty"
    spoken = [" ".join(clip.text for clip in group) for group in GROUPS]
    through_server = speech.wer(spoken, [" ".join(texts) for texts in got])
    whole_clips = await directly([[[(padded_to_grid(clip.samples), False)]] for clip in CLIPS])
    direct = speech.wer([clip.text for clip in CLIPS], [" ".join(texts) for texts in whole_clips])
    words = sum(len(clip.text.split()) for clip in CLIPS)
    record_property(
        "figure", f"WER through the server {through_server:.1%}, of whole clips {direct:.1%}, {words} words"
    )
    assert through_server <= direct + 0.03


def padded_to_grid(samples: Samples) -> Samples:
    return np.pad(samples, (0, -len(samples) % GRID_SAMPLES))


async def test_manual_finals_equal_the_engine_fed_directly(server: ServerProcess) -> None:
    """Whatever the size of the packets, with two sessions at once."""
    samples = session_audio(GROUPS[0][:6])
    sizes = [928, 3200, 100_001, 15 * 1024 * 1024]
    (expected,) = await directly([slices(samples, None, load_vad())])
    with ThreadPoolExecutor(2) as pool:
        got = pool.map(lambda size: stream(server, samples, manual=True, packet_bytes=size).transcripts, sizes)
        assert list(got) == [expected] * len(sizes)
    assert expected[0]


async def test_manual_speech_of_more_than_a_minute_is_one_item(server: ServerProcess, record_property: Record) -> None:
    clip = speech.long_clip("paragraph_75s")
    assert clip.seconds > 70
    (expected,) = await directly([slices(clip.samples, None, load_vad())])
    transcripts = stream(server, clip.samples, manual=True).transcripts
    assert transcripts == expected
    record_property(
        "figure", f"WER of {clip.seconds:.0f} s in one Manual item {speech.wer(clip.text, transcripts):.1%}"
    )
    assert speech.wer(clip.text, transcripts) < 0.35


def test_speech_without_pauses_loses_and_doubles_no_word(server: ServerProcess) -> None:
    """A piece is cut by force at most 28 s in; the transcript is as long as the text."""
    clip = speech.long_clip("nonstop_30s")
    transcript = " ".join(stream(server, clip.samples, manual=True).transcripts)
    assert len(transcript.split()) == pytest.approx(len(clip.text.split()), rel=0.12)


async def test_pacing_changes_nothing(server: ServerProcess) -> None:
    """As it is spoken, faster than that, and all at once: the same segments and finals."""
    samples = session_audio(GROUPS[1])[: 20 * speech.RATE]
    with ThreadPoolExecutor() as pool:
        live = pool.submit(stream, server, samples, live=True)
        fast = pool.submit(stream, server, samples)
        whole = pool.submit(stream, server, samples, packet_bytes=15 * 1024 * 1024)
        recorders = [live.result(), fast.result(), whole.result()]
    told = [places_and_finals(recorder.frames) for recorder in recorders]
    assert told[0] == told[1] == told[2]
    assert len(told[0][2]) >= 3


def places_and_finals(frames: Sequence[Frame]) -> tuple[list[object], ...]:
    """Return starts, ends and transcripts, each in order; how they interleave is a matter of speed."""
    keys = ("audio_start_ms", "audio_end_ms", "transcript")
    return tuple([frame[key] for frame in frames if key in frame] for key in keys)


@dataclass
class Liveness:
    """How `text` fared in utterances of 4 s and more."""

    confirmed_chars: list[int] = field(default_factory=list)
    """Characters of the final's words that stood in `text` when speech ended."""
    final_chars: list[int] = field(default_factory=list)
    contradicted: list[bool] = field(default_factory=list)
    """Whether the final does not begin with the last `text`."""
    lags_s: list[float] = field(default_factory=list)
    """For each confirmed word of the final: from its end in the audio to its showing in `text`."""


def test_confirmed_text_lives(server: ServerProcess, record_property: Record) -> None:
    """In utterances of 4 s and more, half of the finals' characters are confirmed by the time speech ends.

    That is of all of them together: a single utterance may have less, and the least is recorded.

    The engine's own last pass changes words that its partials agreed on, so finals do contradict `text`; how
    often is recorded, and that `text` itself is never rewritten is demanded.
    """
    clips = [clip for clip in speech.prompts() if clip.seconds >= 5][:12]
    liveness = Liveness()
    for at in range(0, len(clips), 2):
        with ThreadPoolExecutor() as pool:
            for recorder, began in pool.map(lambda clip: watch(server, clip), clips[at : at + 2]):
                note(liveness, recorder, began)
    shares = np.array(liveness.confirmed_chars) / np.array(liveness.final_chars)
    pooled = sum(liveness.confirmed_chars) / sum(liveness.final_chars)
    record_property(
        "figure",
        f"confirmed when speech ended: {pooled:.0%} of the finals' characters (each utterance: median"
        f" {np.median(shares):.0%}, least {min(shares):.0%}); finals that contradict it {sum(liveness.contradicted)} of"
        f" {len(liveness.contradicted)}; confirmation lag p50 {np.median(liveness.lags_s):.1f} s,"
        f" p95 {np.percentile(liveness.lags_s, 95):.1f} s",
    )
    assert len(shares) >= 10
    assert pooled >= 0.5
    assert "asr_stable_text_rewrites_total 0.0" in server.text("/metrics")


def watch(server: ServerProcess, clip: speech.Clip) -> tuple[Recorder, float]:
    """Stream a clip as it is spoken; return what came, and when the first packet left."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, words=True)
        recorder.wait_for("session.updated")
        began = time.monotonic()
        send(client, speech.pcm16(np.concatenate([clip.samples, GAP])), live=True)
        client.end_session()
    assert_finished(recorder.frames)
    return recorder, began


def note(liveness: Liveness, recorder: Recorder, began: float) -> None:
    """Judge the utterances that are long enough."""
    shown: list[tuple[float, str]] = []
    started_ms, at_end, long_enough = 0, "", False
    for frame, came in zip(recorder.frames, recorder.times, strict=True):
        if frame["type"] == "input_audio_buffer.speech_started":
            shown, started_ms = [(0.0, "")], frame["audio_start_ms"]
        elif frame["type"] == TEXT:
            shown.append((came - began, frame["text"]))
        elif frame["type"] == "input_audio_buffer.speech_stopped":
            at_end, long_enough = shown[-1][1], frame["audio_end_ms"] - started_ms >= 4000
        elif frame["type"] == COMPLETED and long_enough:
            words = [word["text"] for word in frame["words"]]
            same = SequenceMatcher(None, at_end.split(), words, autojunk=False).get_matching_blocks()
            liveness.confirmed_chars.append(sum(len(word) for m in same for word in words[m.b : m.b + m.size]))
            liveness.final_chars.append(sum(map(len, words)))
            liveness.contradicted.append(not frame["transcript"].startswith(shown[-1][1]))
            for count, word in enumerate(frame["words"], 1):
                times = [at for at, text in shown if text.split()[:count] == words[:count]]
                liveness.lags_s += [times[0] - word["end_time"] / 1000] if times else []


def test_many_sessions_at_once_say_what_each_says_alone(server: ServerProcess) -> None:
    """More speakers than decoders: nothing leaks, nothing is lost."""
    clips = [clip for clip in speech.prompts() if 2.5 <= clip.seconds <= 4.5][:8]
    audio = [np.concatenate([clip.samples, GAP]) for clip in clips]
    alone = [stream(server, samples).transcripts for samples in audio]
    with ThreadPoolExecutor(len(audio)) as pool:
        together = list(pool.map(lambda samples: stream(server, samples, live=True).transcripts, audio))
    assert together == alone
    assert sum(map(len, alone)) >= len(clips)


def test_a_whole_wav_file_in_one_append(server: ServerProcess) -> None:
    """What the example client does: RIFF header and all, declared as pcm, then a commit."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        client.append_audio(base64.b64encode(speech.CONVERSATION_WAV.read_bytes()).decode())
        client.commit()
        client.end_session()
    whole = speech.conversation()
    assert recorder.transcripts == stream(server, whole.samples, manual=True).transcripts
