"""When the word times of a session are asked for, and how long a final waits for them.

For engines without word times of their own. As soon as what may be a piece's final is heard, its words are asked for,
so that they are there before the silence ends in most cases. A final that is ready waits a little for missing ones,
then goes without. Knows no aligner and no clock beyond the `now` it is given; `recognition.py` is its caller.
"""

from collections.abc import Callable

from qwen3_asr_server.domain import Hypothesis, Samples, Word
from qwen3_asr_server.messages import Align, Aligned
from qwen3_asr_server.session.items import Item, Piece
from qwen3_asr_server.session.options import SessionOptions


class WordTimes:
    """The word times that a session waits for.

    Attributes:
        due: when the final that waits now goes without; None while none waits.
        missed: finals that were told without the times that were asked for.
    """

    def __init__(self, options: SessionOptions) -> None:
        self._options = options
        self._asked: dict[int, Piece] = {}
        self.due: float | None = None
        self.missed = 0

    def ask(self, item: Item, piece: Piece, heard: Hypothesis, upto: int, read: Callable[[], Samples]) -> Align | None:
        """Return the job for what may be a piece's final, if it needs one."""
        if not (self._options.align_words and item.words_wanted and heard.text) or heard.words:
            return None
        piece.placing = upto
        self._asked[piece.number] = piece
        return Align(piece.number, upto, read(), heard.text, heard.language or item.options.language)

    def take(self, aligned: Aligned) -> bool:
        """Take in an answer; tell whether anybody waits for it."""
        piece = self._asked.get(aligned.piece)
        if piece is None or piece.placing != aligned.upto:
            return False
        del self._asked[aligned.piece]
        piece.placing = None
        piece.placed = (aligned.upto, aligned.words)
        return True

    def holds_back(self, item: Item, now: float) -> bool:
        """Tell whether a final that is ready and first in turn should wait."""
        if item.error is not None or not any(piece.waits_for_words for piece in item.pieces):
            return False
        if self.due is None:
            self.due = now + self._options.words_wait_s
        return now < self.due

    def told(self, item: Item) -> tuple[Word, ...] | None:
        """Return the words of an item that is told now; None if they are not wanted, or not all of them are there."""
        self.due = None
        self.forget(item)
        if not item.words_wanted or item.error is not None:
            return None
        if any(not piece.words for piece in item.pieces if piece.final is not None and piece.final.text):
            self.missed += self._options.align_words
            return None
        return tuple(item.all_words()) or None

    def forget(self, item: Item) -> None:
        """Wait for nothing of an item any more."""
        for piece in item.pieces:
            self._asked.pop(piece.number, None)
