"""What streams and the engine core say to one another: plain values, token ids and mel.

    prompt = before + audio placeholders of all windows + after

Nothing here imports vLLM. Streams (`_vllm_stream`) build requests, `_vllm_adapter` carries them out; tests put
something else in its place.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.domain import Samples, StepKind
from qwen3_asr_server.text.guard import Suspicion

TokenIds = tuple[int, ...]

PRIORITIES: Final = {StepKind.FINAL: -10, StepKind.CANDIDATE: 0, StepKind.PARTIAL: 10}
"""vLLM serves the lowest first."""
RECORDED_PRIORITY: Final = 20
"""Of every step of a recording."""
LOOP_TOKENS: Final = 20
"""Longest pattern of tokens that counts as a loop when it is written `LOOP_COUNT` times in a row; as `text.guard`."""
LOOP_COUNT: Final = 20


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One audio item: at most 800 mel frames (8 s), one attention window of the encoder."""

    key: str
    """Names exactly this mel, in all sessions and for ever: what caches are asked for."""
    mel: npt.NDArray[np.float32]
    """float32 [bins, frames], as the encoder takes it."""
    samples: Samples
    """The audio of the mel, for the slower route that computes it again."""
    tokens: int
    """Placeholders it takes in the prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One greedy decode."""

    before: TokenIds
    windows: Sequence[Window]
    after: TokenIds
    max_tokens: int
    kind: StepKind
    asked_at: float
    """Seconds since the epoch: among equally urgent requests the earliest goes first."""
    delivered: set[str] = field(default_factory=set)
    """Keys of windows that the engine core has for certain; whoever carries the request out adds to it."""
    chances: bool = False
    """Whether the probabilities of the new tokens are wanted."""
    recorded: bool = False
    """It is for a recording, and makes way for live sessions."""

    @property
    def priority(self) -> int:
        """How vLLM ranks it: the lowest first."""
        return RECORDED_PRIORITY if self.recorded else PRIORITIES[self.kind]


class Ending(Enum):
    """Why a decode ended."""

    STOP = "stop"
    """The model said so."""
    LENGTH = "length"
    """It reached `max_tokens`."""
    LOOP = "loop"
    """It repeated itself."""


ENDINGS: Final = {"stop": Ending.STOP, "length": Ending.LENGTH, "repetition": Ending.LOOP}
"""vLLM's words for them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a decode gave."""

    ids: TokenIds
    """New tokens, without the one that ends the text."""
    ending: Ending
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were not computed again."""
    chances: tuple[float, ...] = ()
    """Probability in [0, 1] of each id; empty where nobody asked, or the engine core does not say."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A draft compared with what the model would have written itself."""

    agreed: int
    """Leading tokens of the draft that are the model's own first choice."""
    correction: int | None
    """The model's choice in place of the first one that is not; None if it ends the text, or all agreed."""
    continuation: Answer | None
    """What follows the draft, when all of it agreed."""
    chances: tuple[float, ...] = ()
    """Probability of each id that agreed, and of the correction; empty where the engine core does not say."""


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started; `stats()` shows it."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    resent: int = 0
    """Requests repeated with all data because the engine core had forgotten some."""
    verified: int = 0
    """Drafts that were compared with the model's own choice."""
    corrected: int = 0
    """Drafts that were not."""
    cut: int = 0
    """Decodes that reached their bound."""
    stalled: int = 0
    """Partial steps decoded afresh because new speech had brought no new text."""
    redecoded: int = 0
    """Finals decoded once more, without draft and context."""
    held_languages: int = 0
    """Short answers written anew in the language of their session."""
    suspicions: Counter[Suspicion] = field(default_factory=Counter)
    """Answers that were not fit to be sent."""

    def computed(self) -> int:
        """Return how many tokens were computed, and so put into the KV cache."""
        return self.prompt_tokens - self.cached_tokens + self.new_tokens

    def flat(self) -> dict[str, int]:
        """Return all of them by name."""
        numbers = {name: value for name, value in asdict(self).items() if name != "suspicions"}
        return numbers | {f"suspicion_{found.value}": self.suspicions[found] for found in Suspicion}


class Core(Protocol):
    """The engine core, as streams see it."""

    @property
    def can_verify(self) -> bool:
        """Whether `verify` works."""
        ...

    @property
    def counters(self) -> Counters:
        """Shared by all streams."""
        ...

    async def generate(self, request: Request) -> Answer:
        """Decode.

        Raises:
            EngineError: it could not be done; EngineCrashed when the engine core is gone.
        """
        ...

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        """Compare a draft with the model's own choices and, if all agree, go on from its end.

        Args:
            request: without the draft. Its last window must be new to the engine core, because what is cached
                cannot be compared.
            draft: at least one token.

        Raises:
            EngineError: it could not be done; EngineCrashed when the engine core is gone.
        """
        ...
