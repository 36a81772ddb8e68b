"""What is written to a vLLM server, what is read in its answers, and the tokenizer beside it: without a server."""

import base64
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import decode_mm_kwargs_item, encode_mm_kwargs_item

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._vllm_http_client import Failed, Refused, Unfit, content_of
from qwen3_asr_server.engines._vllm_http_vocabulary import load_vocabulary
from qwen3_asr_server.engines._vllm_http_wire import MelNumbers, Wire, mel_bytes, read_reply
from qwen3_asr_server.engines._vllm_request import Request, Window
from qwen3_asr_server.errors import EngineNotReady
from support.tiny_speech import CHECKPOINT, tiny_clips

WIRE = Wire(pad=99, numbers="float32")


def window(key: str, frames: int, tokens: int) -> Window:
    mel = np.arange(128 * frames, dtype=np.float32).reshape(128, frames)
    return Window(key, mel, np.zeros(frames * 160, np.float32), tokens)


def request(delivered: Collection[str] = (), kind: StepKind = StepKind.PARTIAL, chances: bool = False) -> Request:
    windows = [window("a", 800, 104), window("b", 80, 10)]
    return Request((1, 2, 3), windows, (4, 5), 32, kind, 0.0, set(delivered), chances)


def body(made: Request, check: bool = False) -> Any:
    return json.loads(WIRE.body(made, made.after, max_tokens=made.max_tokens, check=check))


def test_every_window_has_a_key_and_its_place() -> None:
    sent = body(request())
    assert sent["token_ids"] == [1, 2, 3, *[99] * 114, 4, 5]
    assert sent["features"]["mm_hashes"] == {"audio": ["a", "b"]}
    assert sent["features"]["mm_placeholders"] == {
        "audio": [{"offset": 3, "length": 104}, {"offset": 107, "length": 10}]
    }


@pytest.mark.parametrize("delivered", [(), ("a",), ("a", "b"), ("c",)])
def test_only_new_windows_travel(delivered: Collection[str]) -> None:
    data = body(request(delivered))["features"]["kwargs_data"]["audio"]
    assert [item is None for item in data] == ["a" in delivered, "b" in delivered]


def test_a_window_is_its_numbers_and_their_lengths() -> None:
    found = msgspec.msgpack.decode(base64.b64decode(body(request())["features"]["kwargs_data"]["audio"][1]))
    numbers, shape, raw = found["input_audio_features"]["data"]
    assert (numbers, shape, raw.code) == ("float32", [128, 80], 3)
    assert np.array_equal(np.frombuffer(raw.data, "<f4").reshape(128, 80), window("b", 80, 10).mel)
    assert np.frombuffer(found["audio_feature_lengths"]["data"][2].data, "<i8").tolist() == [80]
    assert np.frombuffer(found["feature_attention_mask"]["data"][2].data, "<i4").tolist() == [1] * 80


@pytest.mark.parametrize(
    ("numbers", "size", "precision"), [("float32", 4, 0), ("float16", 2, 2**-11), ("bfloat16", 2, 2**-8)]
)
def test_numbers_lose_no_more_than_their_format_does(numbers: MelNumbers, size: int, precision: float) -> None:
    mel = np.random.default_rng(3).uniform(-1.5, 1.5, (128, 80)).astype(np.float32)
    raw = mel_bytes(mel, numbers)
    assert len(raw) == mel.size * size
    if numbers == "bfloat16":
        back = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        back = np.frombuffer(raw, "<f2" if size == 2 else "<f4").astype("<f4")
    assert np.all(np.abs(back - mel.ravel()) <= np.abs(mel.ravel()) * precision + (precision and 1e-7))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-1.0, 0xBF80),
        (1 + 2**-8, 0x3F80),  # half way: to the even one below
        (1 + 3 * 2**-8, 0x3F82),  # half way: to the even one above
        (1 + 2**-8 + 2**-20, 0x3F81),
        (0.0, 0),
    ],
)
def test_halves_are_rounded_to_even(value: float, bits: int) -> None:
    assert np.frombuffer(mel_bytes(np.full((1, 1), value, np.float32), "bfloat16"), "<u2").tolist() == [bits]


@pytest.mark.parametrize("numbers", ["float32", "float16", "bfloat16"])
def test_vllm_reads_the_numbers_that_the_engine_vllm_would_give_it(numbers: MelNumbers) -> None:
    mel = np.random.default_rng(3).uniform(-1.5, 1.5, (128, 80)).astype(np.float32)
    sent = Wire(99, numbers).item(Window("a", mel, np.zeros(80 * 160, np.float32), 10))
    found = decode_mm_kwargs_item(base64.b64encode(sent).decode())
    there = torch.from_numpy(mel).to(getattr(torch, numbers))
    assert torch.equal(found["input_audio_features"].data, there)
    assert found["feature_attention_mask"].data.tolist() == [1] * 80
    assert found["audio_feature_lengths"].data.tolist() == 80
    assert base64.b64decode(encode_mm_kwargs_item(found)) == sent


def test_decoding_is_greedy_and_ends_loops() -> None:
    params = body(request())["sampling_params"]
    assert params["temperature"] == 0
    assert params["max_tokens"] == 32
    assert params["repetition_detection"]["min_count"] >= 2
    assert not params.keys() & {"logprobs", "prompt_logprobs"}


def test_probabilities_are_asked_for_where_they_are_wanted() -> None:
    assert body(request(chances=True))["sampling_params"]["logprobs"] == 0


def test_a_check_asks_for_the_models_own_choices_and_not_for_those_of_the_cache() -> None:
    params = body(request(), check=True)["sampling_params"]
    assert params["prompt_logprobs"] == 1
    assert params.get("skip_reading_prefix_cache") is not False


def test_finals_go_first() -> None:
    final, candidate, partial = (body(request(kind=kind))["priority"] for kind in StepKind)
    assert final < candidate < partial


def answer(**fields: object) -> bytes:
    choice = {"index": 0, "token_ids": [7, 8], "finish_reason": "stop", "logprobs": None, "routed_experts": None}
    found = {"request_id": "x", "choices": [choice], "usage": {"prompt_tokens": 5, "total_tokens": 7}}
    return json.dumps(found | fields).encode()


def test_an_answer_is_read() -> None:
    reply = read_reply(answer())
    assert reply.token_ids == (7, 8)
    assert (reply.finish_reason, reply.prompt_tokens, reply.cached_tokens) == ("stop", 5, None)
    assert not reply.chances
    assert not reply.first_choices


def test_an_answer_says_how_much_was_cached() -> None:
    usage = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}
    assert read_reply(answer(usage=usage)).cached_tokens == 0


def test_the_last_of_a_row_is_what_the_model_would_have_written() -> None:
    chance = {"rank": 1, "decoded_token": None}
    rows = [None, {"4": chance | {"logprob": 0.0}}, {"4": {"logprob": -9.0}, "6": chance | {"logprob": -0.5}}]
    found = read_reply(answer(prompt_logprobs=rows)).first_choices
    assert [token for token, _ in found] == [4, 6]
    assert [probability for _, probability in found] == pytest.approx([1.0, 0.6065], abs=1e-4)


@pytest.mark.parametrize("text", [b"", b"ok", b"{}", b'{"choices": [], "usage": {"prompt_tokens": 1}}', b"[]"])
def test_another_answer_is_noticed(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what is wrong is of no interest
        read_reply(text)


@pytest.mark.parametrize(
    ("status", "trouble", "says"),
    [
        (401, Unfit, "VLLM_API_KEY"),
        (403, Unfit, "--enable-scale-out"),
        (404, Unfit, "vLLM 0.32"),
        (400, Refused, None),
        (422, Refused, None),
        (500, Failed, None),
        (503, Failed, None),
    ],
)
def test_what_went_wrong_is_sorted_by_what_can_be_done(status: int, trouble: type[Exception], says: str | None) -> None:
    with pytest.raises(trouble, match=says):
        content_of(httpx.Response(status))
    assert content_of(httpx.Response(200, content=b"x")) == b"x"


TEXTS = [
    "system\n",
    "language Chinese<asr_text>",
    "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n",
    "Hello, it's 3 o'clock.  Two  spaces\tand a tab\r\nand lines\n\n ",
    "打开窗户，关闭音乐。「左边」",
    "Ünïcödé e\u0301 \U0001f469\u200d\U0001f4bb ﬁ ½ Ⅷ",
    "<asr_te<asr_text>xt> <|im_end> <| im_end|>",
    "",
    " ",
    *(clip.text for clip in tiny_clips()),
]


@pytest.fixture(params=["parts", "whole"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tokenizer as the published checkpoints hold it, and as the converted ones do."""
    if request.param == "parts":
        return CHECKPOINT
    AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((CHECKPOINT / name).read_bytes())
    assert (tmp_path / "tokenizer.json").exists()
    return tmp_path


def test_the_tokenizer_is_the_models_own(folder: Path) -> None:
    ours, theirs = load_vocabulary(str(folder)), AutoTokenizer.from_pretrained(CHECKPOINT)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_ends_of_text_and_number_format_are_read(folder: Path) -> None:
    found = load_vocabulary(str(folder))
    assert {found.decode([end]) for end in found.ends} == {"<|im_end|>", "<|endoftext|>"}
    assert found.numbers == "float32"


def test_weights_of_sixteen_bits_are_noticed(tmp_path: Path) -> None:
    for path in CHECKPOINT.glob("*.*"):
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    config["thinker_config"]["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_vocabulary(str(tmp_path)).numbers == "bfloat16"


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt", "config.json", "generation_config.json"])
def test_a_folder_that_lacks_something_is_refused_without_its_path(tmp_path: Path, missing: str) -> None:
    for path in CHECKPOINT.glob("*.*"):
        if path.suffix != ".safetensors" and path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(EngineNotReady) as refusal:
        load_vocabulary(str(tmp_path))
    assert "QWEN3_ASR_MODEL_PATH" in refusal.value.message
    assert str(tmp_path) not in refusal.value.message


def test_added_tokens_out_of_order_are_refused(tmp_path: Path) -> None:
    for path in CHECKPOINT.glob("*.*"):
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["600"] = config["added_tokens_decoder"].pop("497")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(EngineNotReady):
        load_vocabulary(str(tmp_path))
