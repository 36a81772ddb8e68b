"""The two bodies of `POST /inference/v1/generate`, the route of `vllm serve` that takes token ids.

It wants a key and a place for each audio item, and the data of those items only that it does not have yet. That data
is what vLLM's own processes send one another: MessagePack, in which an array is its type, its shape and its bytes.
Written for vLLM 0.32. Values in, bytes out: knows no servers and no sockets. Called by `_vllm_http_core`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from qwen3_asr_server.engines._vllm_request import LOOP_COUNT, LOOP_TOKENS, Request, TokenIds, Window

MelNumbers = Literal["float32", "bfloat16", "float16"]
"""What mel values travel as. The encoder turns them into its own type, so fewer bits lose nothing where it has no
more."""
NUMBERS: Final[Mapping[str, MelNumbers]] = MappingProxyType({"float": "float32", "half": "float16"})
"""What the values of the setting `MODEL_DTYPE` stand for, but `auto`."""

_RAW: Final = 3
"""MessagePack extension of vLLM: bytes that follow are the numbers themselves."""
_ON_CPU: Final = ["batched", {"keep_on_cpu": True}]


@dataclass(frozen=True, slots=True)
class _Details:
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Usage:
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


@dataclass(frozen=True, slots=True)
class _Chance:
    logprob: float


@dataclass(frozen=True, slots=True)
class _Chances:
    content: list[_Chance] | None = None


@dataclass(frozen=True, slots=True)
class _Choice:
    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: _Chances | None = None


@dataclass(frozen=True, slots=True)
class _Body:
    choices: list[_Choice]
    usage: _Usage
    prompt_logprobs: list[dict[int, _Chance] | None] | None = None


_BODY: Final = msgspec.json.Decoder(_Body)
_NOTHING: Final = (-1, _Chance(0.0))


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    token_ids: TokenIds
    """New tokens, with the one that ends the text if there is one."""
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int | None
    """None if the server does not say."""
    chances: Sequence[float]
    """Probability in [0, 1] of each new token; empty where nobody asked."""
    first_choices: Sequence[tuple[int, float]]
    """What the model would have written at each place of the prompt but the first, and its probability; empty without
    a check."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How requests are written for one model."""

    pad: int
    """Token id that stands for audio."""
    numbers: MelNumbers

    def body(self, request: Request, after: TokenIds, *, max_tokens: int, check: bool = False) -> bytes:
        """Return the JSON of a decode.

        Args:
            request: windows whose keys are in `delivered` travel without data.
            after: what follows the audio, in place of the request's own.
            max_tokens: in place of the request's own.
            check: ask for the model's own choice at each place of the prompt, too. vLLM then computes all of it, as
                nothing is known of what it only has in its prefix cache.
        """
        ids, places = list(request.before), []
        for window in request.windows:
            places.append({"offset": len(ids), "length": window.tokens})
            ids += [self.pad] * window.tokens
        data = [None if window.key in request.delivered else self.item(window) for window in request.windows]
        body: bytes = msgspec.json.encode(
            {
                "token_ids": [*ids, *after],
                "features": {
                    "mm_hashes": {"audio": [window.key for window in request.windows]},
                    "mm_placeholders": {"audio": places},
                    "kwargs_data": {"audio": data},
                },
                "sampling_params": _sampling(max_tokens, request.chances, check),
                "priority": request.priority,
            }
        )
        return body

    def item(self, window: Window) -> bytes:
        """Return the data of one audio item; JSON makes base64 of it."""
        frames = window.mel.shape[1]
        whole = [[[None, None, None], [0, frames, None]]]
        mel = _element(self.numbers, window.mel.shape, mel_bytes(window.mel, self.numbers))
        mask = _element("int32", (frames,), np.ones(frames, "<i4").tobytes())
        length = _element("int64", (), np.array(frames, "<i8").tobytes())
        data: bytes = msgspec.msgpack.encode(
            {
                "input_audio_features": {
                    "data": mel,
                    "field": ["flat", {"keep_on_cpu": False, "slices": whole, "dim": 1}],
                },
                "feature_attention_mask": {"data": mask, "field": _ON_CPU},
                "audio_feature_lengths": {"data": length, "field": _ON_CPU},
            }
        )
        return data


def read_reply(body: bytes) -> Reply:
    """Take an answer apart.

    Raises:
        ValueError: it is not what vLLM 0.32 answers.
    """
    try:
        found = _BODY.decode(body)
    except msgspec.MsgspecError as problem:
        raise ValueError("not an answer of vLLM 0.32") from problem
    (choice,) = found.choices
    details = found.usage.prompt_tokens_details
    # A row holds the token that stands there and then, if it is another one, the model's first choice.
    rows = [next(reversed(row.items())) if row else _NOTHING for row in (found.prompt_logprobs or ())[1:]]
    chances = (choice.logprobs and choice.logprobs.content) or ()
    return Reply(
        tuple(choice.token_ids),
        choice.finish_reason,
        found.usage.prompt_tokens,
        details.cached_tokens if details else None,
        [_probability(chance) for chance in chances],
        [(token, _probability(chance)) for token, chance in rows],
    )


def mel_bytes(mel: npt.NDArray[np.float32], numbers: MelNumbers) -> bytes:
    """Return mel values as they travel, little-endian, row by row.

    Args:
        mel: float32 [bins, frames], finite.
        numbers: what they become.
    """
    whole = np.ascontiguousarray(mel, "<f4")
    match numbers:
        case "float32":
            return whole.tobytes()
        case "float16":
            return whole.astype("<f2").tobytes()
        case "bfloat16":
            bits = whole.view("<u4")
            # The upper half, rounded to the nearest and ties to even, as the model's own library does.
            rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
            return rounded.tobytes()


def _probability(chance: _Chance) -> float:
    return math.exp(min(0.0, chance.logprob))


def _sampling(max_tokens: int, chances: bool, check: bool) -> dict[str, object]:
    params: dict[str, object] = {
        "temperature": 0.0,
        "max_tokens": max_tokens,
        "detokenize": False,
        "repetition_detection": {"max_pattern_size": LOOP_TOKENS, "min_pattern_size": 1, "min_count": LOOP_COUNT},
    }
    if chances:
        params["logprobs"] = 0
    if check:
        params["prompt_logprobs"] = 1
    return params


def _element(numbers: str, shape: tuple[int, ...], data: bytes) -> list[object]:
    return [numbers, shape, msgspec.msgpack.Ext(_RAW, data)]
