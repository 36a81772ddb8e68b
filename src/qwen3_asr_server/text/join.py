"""Join the texts of neighbouring pieces, and take out what two overlapping pieces both heard.

Spaces stand between words of spaced scripts only, which is told from the characters at the joint. Knows no
audio and no sessions; called with the texts of pieces, of finals and of segments.
"""

from collections.abc import Sequence

from qwen3_asr_server.text.units import is_unspaced, split_units

_CLOSING = frozenset(".,;:!?…)]}%")
_MAX_UNIT_CHARS = 40


def joint(left: str, right: str) -> str:
    """Return what belongs between two texts: a space or nothing."""
    if not left or not right or left[-1].isspace() or right[0].isspace():
        return ""
    return "" if is_unspaced(left[-1]) or is_unspaced(right[0]) or right[0] in _CLOSING else " "


class GrowingText:
    """A text that grows by its parts, which are told as they come.

    Attributes:
        text: all of it so far.
    """

    def __init__(self) -> None:
        self.text = ""

    def add(self, part: str) -> str:
        """Add a part without outer white space; return by what the text has grown."""
        delta = joint(self.text, part) + part
        self.text += delta
        return delta


def join_texts(parts: Sequence[str]) -> str:
    """Return the parts as one text. Their outer white space goes, and empty parts are skipped."""
    joined = ""
    for part in map(str.strip, parts):
        joined += joint(joined, part) + part
    return joined


def merge_overlap(left: str, right: str, max_units: int = 12) -> tuple[str, str]:
    """Take out what the right text repeats, after a cut where both pieces heard the same stretch of audio.

    The longest run of units near the joint that both texts have, case and punctuation aside, is taken for that
    stretch; of equals, the one nearest to the joint. The left text is kept up to the end of the run, because its
    last word may have been cut, and the right one from there on. A run counts only if neither side loses more
    units beside it than it has, so that a chance match deep inside removes nothing.

    Args:
        left: the text before the cut.
        right: the text after it, whose audio began before the cut.
        max_units: how far from the joint to look on each side, in words or characters.

    Returns:
        Both texts for `join_texts`; unchanged if they share no run.
    """
    window = max_units * _MAX_UNIT_CHARS
    far = max(0, len(left) - window)
    heads = split_units(right[:window])[:max_units]
    tails = split_units(left[far:])[-max_units:]
    best = (0, 0, 0, 0)
    for i in range(len(tails)):
        for j in range(len(heads)):
            size = 0
            while (
                i + size < len(tails)
                and j + size < len(heads)
                and tails[i + size].core.casefold() == heads[j + size].core.casefold()
            ):
                size += 1
            lost = len(tails) - i - size
            if size and max(lost, j) <= size:
                best = max(best, (size, -lost - j, i + size, j + size))
    size, _, left_units, right_units = best
    if not size:
        return left, right
    return left[: far + tails[left_units - 1].end], right[heads[right_units - 1].end :].lstrip()
