"""What vLLM is asked and what it computes, request by request.

`Meter` stands in front of `AsyncLLM.generate` and notes each request for the step that made it; `EncoderLog` is mixed
into vLLM's worker and notes each audio item that the encoder is given. Put together they say what one step of one
session has cost, while others run beside it. Used by `step_cost.py`.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

BIN_S = 2.0
SPAN_S = 8.0


@dataclass(slots=True)
class RequestCount:
    """One request to vLLM."""

    prompt: int = 0
    cached: int = 0
    written: int = 0
    """Tokens sampled, the one that ends the text included."""


@dataclass(slots=True)
class StepCount:
    """One step of one session."""

    session: int
    kind: str
    """`partial`, `candidate` or `final`."""
    at_s: float
    """End of the audio it heard, in seconds from the start of the session."""
    wall_s: float = 0.0
    requests: dict[str, RequestCount] = field(default_factory=dict)
    """By the name that vLLM was given."""
    embeddings: int = 0
    """Audio embeddings that the encoder computed for it."""
    answer: int = 0
    """Tokens of the whole answer, whoever wrote them."""

    @property
    def prefill(self) -> int:
        """Prompt tokens that were computed."""
        return sum(request.prompt - request.cached for request in self.requests.values())

    @property
    def cached(self) -> int:
        """Prompt tokens that were not."""
        return sum(request.cached for request in self.requests.values())

    @property
    def written(self) -> int:
        """Tokens sampled."""
        return sum(request.written for request in self.requests.values())

    def serial(self, batched_tokens: int) -> int:
        """Return the steps of the model that had to follow one another, `batched_tokens` of a prompt in each."""
        return sum(
            math.ceil((request.prompt - request.cached) / batched_tokens) + max(1, request.written) - 1
            for request in self.requests.values()
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """An audio item that the encoder was given."""

    request: str
    key: str
    embeddings: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Closed windows and how often they were encoded."""

    closed: int
    """Different ones."""
    twice: int
    """Encodings of one under a key that had been encoded before."""
    lifted: int
    """Encodings under another key, because something louder came later."""


class Meter:
    """Notes what each step asks of vLLM. Put it in front of an engine once."""

    def __init__(self, vllm: Any) -> None:
        self.steps: list[StepCount] = []
        self._current: ContextVar[StepCount | None] = ContextVar("step", default=None)
        self._generate = vllm.generate
        self._names = itertools.count()
        self._vllm = vllm
        vllm.generate = self._counted

    @contextmanager
    def step(self, session: int, kind: str, at_s: float) -> Iterator[StepCount]:
        """Note what is asked inside the `with` block."""
        step = StepCount(session, kind, at_s)
        self.steps.append(step)
        token = self._current.set(step)
        began = time.perf_counter()
        try:
            yield step
        finally:
            step.wall_s = time.perf_counter() - began
            self._current.reset(token)

    async def begin(self) -> None:
        """Forget everything, and let the worker count from here."""
        self.steps.clear()
        await self._vllm.collective_rpc("log_encoder")

    async def end(self) -> list[Encoded]:
        """Credit each step with what the encoder did for it, and return that."""
        (rows,) = await self._vllm.collective_rpc("encoder_log")
        encoded = [Encoded(*row) for row in rows]
        credit(self.steps, encoded)
        return encoded

    async def _counted(self, prompt: Any, params: Any, name: str, **more: Any) -> AsyncGenerator[Any, None]:
        step = self._current.get()
        request = RequestCount()
        name = f"{name}-{next(self._names)}"  # two cores on one engine would give the same names
        if step is not None:
            step.requests[name] = request
        async with aclosing(self._generate(prompt, params, name, **more)) as outputs:
            async for output in outputs:
                request.prompt = len(output.prompt_token_ids)
                request.cached = output.num_cached_tokens or 0
                request.written = len(output.outputs[0].token_ids)
                yield output


class EncoderLog:
    """Methods for vLLM's worker (`worker_extension_cls`), called from outside by name."""

    model_runner: Any

    def log_encoder(self) -> None:
        """Begin to note, from nothing."""
        self.encoded: list[tuple[str, str, int]] = []
        runner = self.model_runner
        if hasattr(self, "hooked"):
            return
        self.hooked = True
        encode = runner._execute_mm_encoder

        def noted(scheduled: Any) -> Any:
            for request, places in scheduled.scheduled_encoder_inputs.items():
                items = runner.requests[request].mm_features
                found = [items[place] for place in places if items[place].data is not None]
                self.encoded += [(request, item.identifier, item.mm_position.length) for item in found]
            return encode(scheduled)

        runner._execute_mm_encoder = noted

    def encoder_log(self) -> list[tuple[str, str, int]]:
        """Return request, key and embeddings of every item encoded so far."""
        return self.encoded


def credit(steps: Iterable[StepCount], encoded: Iterable[Encoded]) -> None:
    """Add what the encoder did to the steps it was done for.

    vLLM adds a random ending to the names of requests.
    """
    owners = {name: step for step in steps for name in step.requests}
    for item in encoded:
        owner = owners.get(item.request) or owners.get(item.request.rpartition("-")[0])
        if owner is not None:
            owner.embeddings += item.embeddings


def count_windows(encoded: Iterable[Encoded]) -> Windows:
    """Count closed windows by their keys, which are `piece/number/floor`; a tail's key is new in every step."""
    named = [item.key for item in encoded if item.key.count("/") == 2]
    keys = Counter(key for key in named if not key.rpartition("/")[2].startswith("step"))
    closed = {key.rpartition("/")[0] for key in keys}
    return Windows(len(closed), keys.total() - len(keys), len(keys) - len(closed))


def bins(steps: Iterable[StepCount], seconds: float) -> list[tuple[int, int]]:
    """Return prefill tokens and encoder embeddings of every `BIN_S` of audio, one after the other."""
    found = [[0, 0] for _ in range(math.ceil(seconds / BIN_S))]
    for step in steps:
        place = found[math.ceil(step.at_s / BIN_S) - 1]
        place[0] += step.prefill
        place[1] += step.embeddings
    return [(prefill, embeddings) for prefill, embeddings in found]


def mean_before(work: Sequence[Sequence[int]], at_s: float, which: int, span_s: float = SPAN_S) -> float:
    """Return the work for each second of audio in the `span_s` before `at_s`; 0 is prefill, 1 is embeddings."""
    end = round(at_s / BIN_S)
    return sum(work[place][which] for place in range(end - round(span_s / BIN_S), end)) / span_s
