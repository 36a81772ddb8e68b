"""What the server ought to answer: the same slices, cut and recognised without any of its runtime.

The detector is asked frame by frame, the segmenter is fed by hand, and each piece is given to the engine
whole. What the socket, the pacing, the batches and the scheduler add to that must be nothing.
"""

import numpy as np

from qwen3_asr_server.audio.timeline import Timeline
from qwen3_asr_server.domain import FRAME_SAMPLES, Samples, StepKind, StreamOptions, TurnDetection
from qwen3_asr_server.engines._base import Engine
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.segmenter import ItemBegan, ItemEnded, Mark, PieceBegan, PieceEnded, Segmenter
from qwen3_asr_server.text.join import join_texts, merge_overlap
from qwen3_asr_server.vad import VadModel

Slices = list[list[tuple[Samples, bool]]]
"""For each item its pieces: audio, and whether it overlaps the piece before."""


def slices(samples: Samples, turn: TurnDetection | None, vad: VadModel) -> Slices:
    """Cut audio as a session does; with `turn` None it is one Manual item."""
    timeline = Timeline()
    timeline.append(samples)
    segmenter = Segmenter(turn, SessionOptions(), 0, timeline.quietest)
    marks: list[Mark] = []
    state = vad.new_state()[np.newaxis]
    for start in range(0, len(samples), FRAME_SAMPLES):
        frame = timeline.read(start, start + FRAME_SAMPLES)[np.newaxis]
        probabilities, state = vad.score(np.array(frame), state)
        marks += segmenter.push(float(probabilities[0]))
    marks += segmenter.close(len(samples))
    items: Slices = [] if turn else [[]]
    start, again = 0, False
    for mark in marks:
        match mark:
            case ItemBegan():
                items.append([])
            case PieceBegan(start=start, overlaps=again):
                pass
            case PieceEnded(end=end):
                items[-1].append((timeline.read(start, end), again))
            case ItemEnded() | _:
                pass
    return items


async def recognise(engine: Engine, items: Slices) -> list[str]:
    """Return the transcript of each item, its pieces decoded at one go."""
    texts = []
    for pieces in items:
        text = ""
        for audio, again in pieces:
            stream = engine.open_stream(StreamOptions())
            hypothesis = await stream.step(audio, StepKind.FINAL)
            await stream.close()
            assert hypothesis is not None
            text = join_texts(merge_overlap(text, hypothesis.text) if again else [text, hypothesis.text])
        texts.append(text)
    return texts
