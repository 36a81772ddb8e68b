"""What the engine `vllm_http` needs of the model itself: its tokenizer, and two facts of its configuration.

Read from the folder of the checkpoint, or from the hub; a few MB, no weights. The published checkpoints hold the parts
of a tokenizer (`vocab.json`, `merges.txt`), the converted ones (`-hf`) a whole one (`tokenizer.json`); both are put
into the library `tokenizers`, which the model's own library uses too. Called by `vllm_http` when it starts.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from qwen3_asr_server.engines._vllm_http_wire import MelNumbers
from qwen3_asr_server.errors import EngineNotReady

_log = logging.getLogger(__name__)

_FILES: Final = ("*.json", "merges.txt")
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where the tokenizer of Qwen2 and Qwen3 splits a text before it looks for pairs."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's tokenizer, and what belongs to it."""

    tokenizer: Tokenizer
    ends: frozenset[int]
    """Tokens that end a text."""
    numbers: MelNumbers
    """Number format of the weights."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Nothing is added; added tokens are known by their names."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, added tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def load_vocabulary(model: str) -> Vocabulary:
    """Read it; blocks, and may download.

    Args:
        model: folder, or name on the hub.

    Raises:
        EngineNotReady: it is not there, or not that of a Qwen3-ASR model.
    """
    try:
        folder = Path(model) if Path(model).is_dir() else _downloaded(model)
        tokenizer = _tokenizer(folder)
        ends = _ends(folder)
        numbers = _numbers(_read(folder / "config.json"))
    except Exception as problem:  # the libraries raise anything, plain `Exception` included
        _log.exception("the tokenizer could not be read")
        raise EngineNotReady("QWEN3_ASR_MODEL_PATH holds no tokenizer that can be read") from problem
    return Vocabulary(tokenizer, ends, numbers)


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(_FILES)))


def _tokenizer(folder: Path) -> Tokenizer:
    whole = folder / "tokenizer.json"
    if whole.exists():
        return Tokenizer.from_file(str(whole))
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added: Mapping[str, Any] = _read(folder / "tokenizer_config.json")["added_tokens_decoder"]
    listed = sorted((int(number), token) for number, token in added.items())
    tokenizer.add_tokens([AddedToken(**token) for _, token in listed])
    for number, token in listed:
        if tokenizer.token_to_id(token["content"]) != number:
            raise ValueError("its added tokens do not follow its vocabulary")
    return tokenizer


def _ends(folder: Path) -> frozenset[int]:
    found = _read(folder / "generation_config.json")["eos_token_id"]
    return frozenset([found] if isinstance(found, int) else found)


def _numbers(config: Mapping[str, Any]) -> MelNumbers:
    """Return how the weights are stored: a server that is left to itself computes at most as finely."""
    named = {config.get(key) for key in ("dtype", "torch_dtype")}
    thinker = config.get("thinker_config") or {}
    named |= {thinker.get(key) for key in ("dtype", "torch_dtype")}
    return "bfloat16" if "bfloat16" in named else "float32"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
