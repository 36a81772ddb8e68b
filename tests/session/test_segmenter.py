"""Where items and pieces begin and end, in milliseconds, as tables.

A script is a list of `(voiced, frames)`; a frame is 32 ms. All pieces lie on an 80 ms grid of their own.
"""

from dataclasses import replace

import pytest

from qwen3_asr_server.domain import GRID_SAMPLES, SAMPLE_RATE, TurnDetection, ms_of_samples
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.segmenter import ItemBegan, ItemEnded, Mark, Paused, PieceBegan, PieceEnded, Segmenter

Script = list[tuple[bool, int]]
TURN = TurnDetection(threshold=0.5, silence_ms=800, prefix_padding_ms=300)


def run(
    script: Script, turn: TurnDetection | None = TURN, options: SessionOptions = SessionOptions(), quiet_ms: int = 0
) -> tuple[Segmenter, list[str]]:
    """Return the marks as text; the quietest place is `quiet_ms` before the end of any search."""
    segmenter = Segmenter(turn, options, 0, lambda _, upto: upto - quiet_ms * 16)
    marks = [m for voiced, frames in script for _ in range(frames) for m in segmenter.push(0.9 if voiced else 0.0)]
    return segmenter, [told(mark) for mark in marks]


def told(mark: Mark) -> str:
    match mark:
        case ItemBegan(at=at):
            return f"item {ms_of_samples(at)}"
        case PieceBegan(start=start, overlaps=overlaps):
            return f"piece {ms_of_samples(start)}{' again' if overlaps else ''}"
        case Paused(upto=upto):
            return f"pause {ms_of_samples(upto)}"
        case PieceEnded(end=end, limit=limit):
            return f"cut {ms_of_samples(end)}" + (f" of {ms_of_samples(limit)}" if limit is not None else "")
        case ItemEnded(at=at):
            return f"end {ms_of_samples(at)}"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param([(False, 20), (True, 1), (False, 20)], [], id="a click"),
        pytest.param(
            # speech 640..1280; lead-in from 340; kept until 1280 + 240 = 1520, on the grid of 340: 1460
            [(False, 20), (True, 20), (False, 30)],
            ["item 640", "piece 340", "pause 1460", "cut 1460", "end 1280"],
            id="one utterance",
        ),
        pytest.param(
            [(True, 10), (False, 30)],
            ["item 0", "piece 0", "pause 560", "cut 560", "end 320"],
            id="the lead-in does not reach back before the track",
        ),
        pytest.param(
            [(True, 20), (False, 10), (True, 10), (False, 30)],
            ["item 0", "piece 0", "pause 880", "pause 1520", "cut 1520", "end 1280"],
            id="a pause within an utterance",
        ),
        pytest.param(
            # the second utterance starts 832 ms after the first ended; its lead-in has room
            [(True, 20), (False, 26), (True, 20), (False, 26)],
            [
                "item 0",
                "piece 0",
                "pause 880",
                "cut 880",
                "end 640",
                "item 1472",
                "piece 1172",
                "pause 2292",
                "cut 2292",
                "end 2112",
            ],
            id="two utterances",
        ),
    ],
)
def test_utterances(script: Script, expected: list[str]) -> None:
    assert run(script)[1] == expected


def test_a_lead_in_never_reaches_into_the_piece_before() -> None:
    turn = TurnDetection(silence_ms=200, prefix_padding_ms=2000)
    _, marks = run([(True, 20), (False, 10), (True, 20), (False, 10)], turn)
    assert marks[marks.index("end 640") + 1 :][:2] == ["item 960", "piece 880"]


@pytest.mark.parametrize("silence_ms", [200, 300, 800, 1500, 2000])
def test_ranges_do_not_depend_on_the_silence_setting(silence_ms: int) -> None:
    turn = TurnDetection(silence_ms=silence_ms)
    _, marks = run([(False, 20), (True, 33), (False, 70), (True, 5), (False, 70)], turn)
    assert [m for m in marks if not m.startswith("pause")] == (
        ["item 640", "piece 340", "cut 1860", "end 1696", "item 3936", "piece 3636", "cut 4276", "end 4096"]
    )


@pytest.mark.parametrize(
    ("age_frames", "pause_frames", "cut"),
    [(100, 62, False), (100, 63, True), (380, 9, False), (380, 10, True), (630, 3, False), (630, 4, True)],
)
def test_the_older_a_piece_the_shorter_the_pause_that_ends_it(age_frames: int, pause_frames: int, cut: bool) -> None:
    """2 s below 12 s of age, 300 ms from there, 120 ms from 20 s on."""
    turn = TurnDetection(silence_ms=6000)
    _, marks = run([(True, age_frames), (False, pause_frames)], turn)
    assert any(mark.startswith("cut") for mark in marks) is cut


def test_a_pause_ends_a_piece_but_not_its_item() -> None:
    turn = TurnDetection(silence_ms=6000)
    _, marks = run([(True, 400), (False, 12), (True, 10), (False, 12)], turn)
    assert marks == ["item 0", "piece 0", "pause 13040", "cut 13040", "piece 13040", "pause 13680"]


def test_speech_without_a_pause_is_cut_at_the_quietest_place() -> None:
    options = replace(SessionOptions(), max_utterance_s=1000)
    _, marks = run([(True, 2000)], options=options, quiet_ms=1000)
    assert marks[:4] == ["item 0", "piece 0", "cut 26960", "piece 26160 again"]
    assert marks[4:] == ["cut 53120", "piece 52320 again"]


def test_an_utterance_is_cut_at_its_limit() -> None:
    _, marks = run([(True, 2000), (False, 30)], quiet_ms=1000)
    at = marks.index("end 58960")
    assert marks[at - 1 : at + 3] == ["cut 58960", "end 58960", "item 58960", "piece 58960"]


def test_an_utterance_at_its_limit_ends_in_the_pause_it_is_in() -> None:
    turn = TurnDetection(silence_ms=6000)
    options = replace(SessionOptions(), max_utterance_s=5)
    segmenter, marks = run([(True, 150), (False, 10)], turn, options)
    assert marks == ["item 0", "piece 0", "cut 5040", "end 4800"]
    assert segmenter.idle


def test_a_forced_cut_behind_the_last_speech_opens_nothing() -> None:
    options = replace(SessionOptions(), max_utterance_s=5)
    segmenter, marks = run([(True, 154), (False, 3)], options=options)
    assert marks == ["item 0", "piece 0", "cut 4960", "end 4928"]
    assert segmenter.idle
    assert [told(m) for m in segmenter.push(0.9) + segmenter.push(0.9)] == ["item 5024", "piece 4960"]


@pytest.mark.parametrize(
    ("script", "at_ms", "expected"),
    [
        pytest.param([(True, 20)], 620, ["cut 880 of 620", "end 620"], id="in speech: the rest is silence"),
        pytest.param([(True, 20), (False, 10)], 960, ["cut 880 of 960", "end 640"], id="in a pause"),
        pytest.param([(False, 20)], 640, [], id="in silence"),
        pytest.param([(True, 1)], 32, [], id="in a click"),
    ],
)
def test_close(script: Script, at_ms: int, expected: list[str]) -> None:
    segmenter, _ = run(script)
    assert [told(mark) for mark in segmenter.close(at_ms * 16)] == expected


def test_manual_mode_has_pieces_but_no_items() -> None:
    segmenter, marks = run([(False, 20), (True, 20), (False, 70), (True, 20)], None)
    assert marks == ["piece 340", "pause 1460", "cut 1460", "piece 3220"]
    assert [told(mark) for mark in segmenter.close(4160 * 16)] == ["cut 4340 of 4160"]


@pytest.mark.parametrize(("silence_frames", "heard"), [(0, 640), (3, 720), (6, 800), (7, None)])
def test_partials_never_hear_more_than_the_final(silence_frames: int, heard: int | None) -> None:
    segmenter, _ = run([(True, 20), (False, silence_frames)])
    upto = segmenter.partial_upto
    assert (None if upto is None else ms_of_samples(upto)) == heard


def test_in_an_old_piece_partials_keep_away_from_the_next_pause() -> None:
    segmenter, _ = run([(True, 640), (False, 3)])
    assert segmenter.partial_upto is not None
    assert segmenter.partial_upto <= 640 * 512 + 120 * 16


def test_everything_lies_on_the_grid_of_its_piece() -> None:
    segmenter = Segmenter(TURN, SessionOptions(), 333, lambda start, upto: (start + upto) // 2)
    start = 0
    for frame in range(4000):
        for mark in segmenter.push(0.9 if frame % 97 < 80 else 0.0):
            match mark:
                case PieceBegan(start=start):
                    pass
                case PieceEnded(end=upto) | Paused(upto=upto):
                    assert (upto - start) % GRID_SAMPLES == 0
                    assert 0 < upto - start <= 28.3 * SAMPLE_RATE
                case _:
                    pass


def test_retune_changes_the_next_utterance() -> None:
    segmenter, _ = run([(True, 10), (False, 30)])
    segmenter.retune(TurnDetection(silence_ms=200, prefix_padding_ms=0))
    marks = [told(m) for p in [0.9] * 10 + [0.0] * 7 for m in segmenter.push(p)]
    assert marks == ["item 1280", "piece 1280", "pause 1840", "cut 1840", "end 1600"]
