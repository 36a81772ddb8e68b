"""The trained tiny aligner in real vLLM: are words where they are said?"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
import pytest_asyncio

from qwen3_asr_server.engines._aligner import VllmAligner
from qwen3_asr_server.engines._base import AlignerOptions
from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.text.alignment import repaired_times, spoken_units
from support.tiny_speech import RATE, joined, spoken
from support.tiny_words import ALIGNER, Phrase, errors_ms, phrases

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPTIONS = AlignerOptions(model_path=str(ALIGNER), dtype="float")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def aligner() -> AsyncIterator[VllmAligner]:
    made = VllmAligner(OPTIONS)
    await made.start()
    yield made
    await made.stop()


async def errors_of(aligner: VllmAligner, given: Sequence[Phrase]) -> np.ndarray:
    placed = await asyncio.gather(*(aligner.align(p.samples, p.text, p.language) for p in given))
    return np.array([ms for words, phrase in zip(placed, given, strict=True) for ms in errors_ms(words, phrase.words)])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("gaps_s", [(0.0, 0.02), (0.05, 0.4)], ids=["close together", "apart"])
@pytest.mark.parametrize(("words", "most_ms"), [((2, 5), 100), ((6, 9), 150)], ids=["few", "more"])
async def test_words_are_placed_where_they_are_said(
    aligner: VllmAligner,
    language: str,
    gaps_s: tuple[float, float],
    words: tuple[int, int],
    most_ms: float,
    record_property,
) -> None:
    errors = await errors_of(aligner, phrases(40, language, words=words, gaps_s=gaps_s))
    median, p95 = np.quantile(errors, [0.5, 0.95])
    within = f"{np.mean(errors <= 100):.1%} within 100 ms"
    record_property("figure", f"{language} {words} {gaps_s}: median {median:.0f} ms, p95 {p95:.0f} ms, {within}")
    assert median <= 40
    assert p95 <= most_ms


async def test_all_at_once_are_placed_like_each_alone(aligner: VllmAligner) -> None:
    given = phrases(16, words=(2, 12))
    alone = [await aligner.align(p.samples, p.text, p.language) for p in given]
    assert await asyncio.gather(*(aligner.align(p.samples, p.text, p.language) for p in given)) == alone


async def test_the_longest_pieces_are_placed_roughly(aligner: VllmAligner, record_property) -> None:
    """The tiny checkpoint is trained mostly on phrases below 10 s; by chance words would be off by seconds."""
    given = [phrase for phrase in phrases(12, words=(30, 45)) if 16 * RATE <= len(phrase.samples) <= 28 * RATE]
    assert len(given) >= 4
    errors = await errors_of(aligner, given)
    record_property("figure", f"median {np.median(errors):.0f} ms, p90 {np.quantile(errors, 0.9):.0f} ms")
    assert np.median(errors) <= 400


async def test_beyond_its_limit_audio_is_gone_through_in_windows(aligner: VllmAligner, record_property) -> None:
    in_windows = VllmAligner(OPTIONS, longest_s=4.0)
    in_windows._core = aligner.core
    errors = await errors_of(in_windows, phrases(6, words=(40, 50), gaps_s=(0.05, 0.3)))
    record_property("figure", f"median {np.median(errors):.0f} ms, p90 {np.quantile(errors, 0.9):.0f} ms")
    assert np.median(errors) <= 120


async def test_times_are_in_order_whatever_the_text(aligner: VllmAligner) -> None:
    chance = random.Random(5)
    for phrase in phrases(8):
        texts = phrase.text.split() if phrase.language == "en" else list(phrase.text)
        chance.shuffle(texts)
        words = await aligner.align(phrase.samples, " ".join([*texts, "xylophone,", "您"]), phrase.language)
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert len(words) == len(texts) + 2
        assert times[-1] <= len(phrase.samples)


async def test_what_is_said_in_one_go_is_placed_between_its_ends(aligner: VllmAligner) -> None:
    """No true times are known here: whole phrases of the synthesizers, not joined words."""
    for clip in [*spoken("en")[:10], *spoken("zh")[:10]]:
        words = await aligner.align(clip.samples, clip.text, clip.language)
        loud = np.flatnonzero(np.abs(clip.samples) > 0.01)
        assert "".join(word.text for word in words) == clip.text.replace(" ", "")
        assert abs(words[0].start - loud[0]) <= 0.3 * RATE
        assert abs(words[-1].end - loud[-1]) <= 0.5 * RATE


async def test_no_text_or_a_language_it_does_not_know_gives_no_words(aligner: VllmAligner) -> None:
    audio = joined(spoken("en")[:2])
    assert [list(await aligner.align(audio, *asked)) for asked in (("", "en"), ("…", None), ("hello", "ar"))] == [
        []
    ] * 3


async def test_a_text_too_long_for_the_model_fails_alone(aligner: VllmAligner) -> None:
    phrase = phrases(1)[0]
    with pytest.raises(EngineError):
        await aligner.align(phrase.samples, "light " * 3000, "en")
    assert not aligner.dead
    assert await aligner.align(phrase.samples, phrase.text, phrase.language)


async def test_a_cancelled_request_leaves_the_next_one_right(aligner: VllmAligner) -> None:
    phrase = phrases(1, words=(8, 9))[0]
    right = await aligner.align(phrase.samples, phrase.text, phrase.language)
    for wait_s in (0.0, 0.002, 0.01):
        task = asyncio.create_task(aligner.align(phrase.samples, phrase.text, phrase.language))
        await asyncio.sleep(wait_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await aligner.align(phrase.samples, phrase.text, phrase.language) == right


# Against the model's own code


async def test_texts_are_cut_as_the_models_own_code_does() -> None:
    from transformers.models.qwen3_asr.processing_qwen3_asr import Qwen3ASRProcessor

    texts = [
        "it's 3.5 km, ice-cream.",
        "打开灯。你好",
        "我用 iPhone15拍照",
        "Здравствуйте, мир!",
        "¿Qué tal? “Bien”",
        "a — b",
        "",
    ]
    for text in texts:
        theirs = Qwen3ASRProcessor.split_words_for_alignment(None, text)
        assert [unit.spoken for unit in spoken_units(text)] == theirs


async def test_times_are_repaired_as_the_models_own_code_does() -> None:
    from transformers.models.qwen3_asr.processing_qwen3_asr import _fix_timestamps

    chance = random.Random(3)
    for _ in range(500):
        times = sorted(chance.choices(range(200), k=chance.randint(1, 40)))
        for _ in range(chance.randint(0, 10)):
            times[chance.randrange(len(times))] = chance.randrange(200)
        times = [time * 80 for time in times]
        assert repaired_times(times) == _fix_timestamps(np.array(times, np.float32))
