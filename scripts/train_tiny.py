"""Train a tiny recogniser of the kind of `tests/data/tiny-qwen3-asr`: speech, tokenizer, model, weights, from nothing.

Random phrases over the lexicon of `make_tiny_speech.py` are spoken by espeak-ng and flite. A tokenizer is trained on
the lexicon, so that a word is mostly one token. The model is transformers' Qwen3-ASR class, given prompts as they are
served; round one also asks the audio encoder for the text (CTC), which makes it listen, and round two joins clips and
puts words into the context. What is not learned (configuration, chat template) is that of `tests/data`. The result has
the published layout, for vLLM and qwen-asr.

Needs Debian's `espeak-ng` and `flite`, and the environment of `scripts/vllm_env.sh` (torch, transformers). One core and
some 25 minutes; more threads only help where nothing else runs.

    .venvs/vllm/bin/python scripts/train_tiny.py WORK           # WORK/checkpoint; the speech is kept for the next run
    .venvs/vllm/bin/python scripts/train_tiny.py WORK --smoke   # a minute, and weights that know nothing
"""

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from make_tiny_speech import (
    EN_DIGITS,
    EN_OTHERS,
    EN_THINGS,
    RATE,
    ZH_DIGITS,
    ZH_OTHERS,
    ZH_THINGS,
    phrase,
    speak,
)
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

from qwen3_asr_server.audio.mel import LogMel, audio_tokens
from qwen3_asr_server.text.prompt import PromptIds, parse_output

TEMPLATE = Path(__file__).resolve().parents[1] / "tests" / "data" / "tiny-qwen3-asr"
"""Whose configuration, chat template and list of added tokens are taken."""
NAMES = [
    ("thinker.audio_tower.proj1.", "model.multi_modal_projector.linear_1."),
    ("thinker.audio_tower.proj2.", "model.multi_modal_projector.linear_2."),
    ("thinker.audio_tower.", "model.audio_tower."),
    ("thinker.model.", "model.language_model."),
]
"""Weights in the published layout, and in that of transformers."""

LANGUAGES = {"en": "English", "zh": "Chinese"}
WORDS = {
    "en": list(dict.fromkeys([*EN_DIGITS, *EN_THINGS, *EN_OTHERS.split()])),
    "zh": list(dict.fromkeys([*ZH_DIGITS, *ZH_THINGS, *ZH_OTHERS.split()])),
}
HEADER_WORDS = ["language", " English", " Chinese", " None", "system", "user", "assistant", "\n"]
CLIP_WORDS = [1, 1, 2, 2, 3, 3, 4, 5]
CLIPS, TESTED = 23_000, 300
CLEANEST, NOISIEST = -5.0, -2.3
"""Powers of ten of the loudness of added noise."""
SILENCE_SHARE = 0.04
LONGEST_PAUSE_S = 0.6
WARM_UP_STEPS = 150
SEED = 5

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A phrase and its sound."""

    language: str | None
    """None for silence."""
    words: list[str]
    samples: Samples

    @property
    def text(self) -> str:
        """What the model is to write."""
        return (" " if self.language == "en" else "").join(self.words)


@dataclass(frozen=True)
class Round:
    """A part of the training. Times are in minutes, the rate is the highest."""

    minutes: float
    rate: float
    batch: int
    ctc_weight: float
    joins: Sequence[int]
    """How many clips are put behind the first; one of these is drawn."""
    most_words: int
    longest_s: float
    context_share: float
    """Examples with random words in the system turn."""
    easy_share: float = 0.0
    """Time at the beginning in which phrases have three words at the most."""


ROUNDS = [
    Round(14, 2e-3, 32, 0.5, [0, 0, 0, 1], 8, 7.0, 0.0, easy_share=0.15),
    Round(9, 7e-4, 24, 0.0, [0, 0, 0, 0, 0, 1, 1, 2, 4], 14, 13.0, 0.15),
]


# Speech


def spoken(count: int, seed: str) -> list[Clip]:
    """Speak random phrases; the seeds of `make_tiny_speech.py` are others."""

    def one(number: int) -> Clip:
        chance = random.Random(f"{seed} {number}")
        language = chance.choice(list(LANGUAGES))
        words = phrase(chance, language, chance.choice(CLIP_WORDS))
        _, samples = speak(chance, language, words)
        return Clip(language, words, samples.astype(np.float32) / 32768)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(count)))


def speech(path: Path, clips: int, tested: int) -> tuple[list[Clip], list[Clip]]:
    """Return what is trained with and what is tested with, from a file if an earlier run has left it."""
    if not path.exists():
        made = [*spoken(clips, "train"), *spoken(tested, "test")]
        said = json.dumps([[clip.language, clip.words, len(clip.samples)] for clip in made])
        sound = np.concatenate([clip.samples for clip in made])
        np.savez(path, said=np.array(said), sound=np.rint(sound * 32767).astype(np.int16))
    stored = np.load(path)
    sound, found, at = stored["sound"].astype(np.float32) / 32768, [], 0
    for language, words, length in json.loads(str(stored["said"])):
        found.append(Clip(language, words, sound[at : at + length]))
        at += length
    return found[:-tested], found[-tested:]


def example(chance: random.Random, clips: Sequence[Clip], plan: Round, most_words: int) -> Clip:
    """Draw a clip, or several of one language in a row, in a room of its own: silence around it, loudness, noise."""
    noise = np.random.default_rng(chance.getrandbits(32))
    if chance.random() < SILENCE_SHARE:
        drawn = Clip(None, [], np.zeros(chance.randint(RATE // 2, 3 * RATE // 2), np.float32))
    else:
        drawn = chance.choice([clip for clip in chance.sample(clips, 8) if len(clip.words) <= most_words] or clips[:1])
        for _ in range(chance.choice(plan.joins)):
            more = next(clip for clip in iter(lambda: chance.choice(clips), None) if clip.language == drawn.language)
            words, gap = [*drawn.words, *more.words], np.zeros(chance.randint(RATE // 20, 2 * RATE // 5), np.float32)
            samples = np.concatenate([drawn.samples, gap, more.samples])
            if len(words) <= most_words and len(samples) <= plan.longest_s * RATE:
                drawn = Clip(drawn.language, words, samples)
    around = [chance.choice([0, chance.randint(0, round(LONGEST_PAUSE_S * RATE))]) for _ in range(2)]
    samples = np.pad(drawn.samples, around) * chance.uniform(0.15, 1.0)
    samples = samples + noise.standard_normal(len(samples)) * 10 ** chance.uniform(CLEANEST, NOISIEST)
    return replace(drawn, samples=samples.astype(np.float32))


# Tokenizer and model


def write_tokenizer(target: Path) -> None:
    """Train the tokenizer, and put what is not learned beside it."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.json", "config.json", "generation_config.json", "preprocessor_config.json"):
        shutil.copyfile(TEMPLATE / name, target / name)
    settings = (TEMPLATE / "tokenizer_config.json").read_text(encoding="utf-8")
    first_added = min(map(int, json.loads(settings)["added_tokens_decoder"]))
    words = [*HEADER_WORDS, *WORDS["en"], *(f" {word}" for word in WORDS["en"]), *WORDS["zh"]]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(words * 3, vocab_size=600, min_frequency=2)
    if trained.get_vocab_size() != first_added:
        raise SystemExit(f"the tokenizer has {trained.get_vocab_size()} tokens, its added ones begin at {first_added}")
    trained.save_model(str(target))
    (target / "tokenizer_config.json").write_text(settings, encoding="utf-8")


def make_model(folder: Path) -> Qwen3ASRForConditionalGeneration:
    """Return the model with random weights. Those of transformers are so small that it would repeat one token."""
    thinker = json.loads((folder / "config.json").read_text(encoding="utf-8"))["thinker_config"]
    audio = {k: v for k, v in thinker["audio_config"].items() if k not in ("conv_chunksize", "max_source_positions")}
    text = {k: v for k, v in thinker["text_config"].items() if k not in ("rope_scaling", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": thinker["text_config"]["rope_theta"]}
    config = Qwen3ASRConfig(
        audio_config=audio | {"model_type": "qwen3_asr_encoder"},
        text_config=text | {"model_type": "qwen3", "rope_parameters": rope},
        audio_token_id=thinker["audio_token_id"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    model = Qwen3ASRForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "conv2d" not in name:
            torch.nn.init.normal_(weight, 0, 0.02 if "embed" in name else 0.8 * weight.shape[1] ** -0.5)
    return model


def publish(model: Qwen3ASRForConditionalGeneration, target: Path) -> None:
    """Write the weights under their published names, and see that none is missing."""
    weights = {
        next(published + name.removeprefix(ours) for published, ours in NAMES if name.startswith(ours)): weight.float()
        for name, weight in model.state_dict().items()
        if not name.startswith("lm_head.")  # the embeddings', tied
    }
    wanted = {name: weight.shape for name, weight in load_file(TEMPLATE / "model.safetensors").items()}
    if wanted != {name: weight.shape for name, weight in weights.items()}:
        raise SystemExit("the weights are not those of the published layout")
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, target / "model.safetensors", {"format": "pt"}
    )


class Reader:
    """Makes of clips what the model is given, and of its answers text."""

    def __init__(self, model: Qwen3ASRForConditionalGeneration, folder: Path) -> None:
        self._model = model
        self._tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self._front = LogMel()
        self._prompt = PromptIds.from_encode(self.encode)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def heard(self, clips: Sequence[Clip]) -> tuple[torch.Tensor, list[int]]:
        """Return the audio embeddings of all clips in a row, and how many each has."""
        mels = [torch.from_numpy(self._front.whole(clip.samples)) for clip in clips]
        frames = [mel.shape[1] for mel in mels]
        longest = math.ceil(max(frames) / 100) * 100
        batch = torch.stack([functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels])
        mask = torch.stack([(torch.arange(longest) < count).long() for count in frames])
        return self._model.model.get_audio_features(batch, mask).pooler_output, [
            audio_tokens(count) for count in frames
        ]

    def question(self, length: int, context: Sequence[str] = ()) -> list[int]:
        """Return the ids of a prompt with `length` audio tokens."""
        return self._prompt.prompt_ids(self.encode(" ".join(context)), [length], None, ())

    def answer(self, clip: Clip) -> list[int]:
        """Return the ids that the model is to write."""
        name = LANGUAGES[clip.language] if clip.language else "None"
        return [*self.encode(f"language {name}<asr_text>{clip.text}"), self._prompt.im_end]

    def embed(self, ids: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of ids, with the audio in its place."""
        embedded = self._model.get_input_embeddings()(ids)
        places = (ids == self._prompt.audio_pad)[..., None].expand_as(embedded)
        return embedded.masked_scatter(places, audio.to(embedded.dtype))

    @torch.no_grad()
    def transcribe(self, clip: Clip, most_tokens: int = 60) -> str:
        """Decode greedily."""
        audio, (length,) = self.heard([clip])
        ids = self.question(length)
        begin = len(ids)
        while len(ids) < begin + most_tokens:
            embedded = self.embed(torch.tensor([ids]), audio)
            states = self._model.model.language_model(inputs_embeds=embedded).last_hidden_state
            ids.append(int(self._model.lm_head(states[0, -1]).argmax()))
            if ids[-1] == self._prompt.im_end:
                break
        return parse_output(self._tokenizer.decode(ids[begin:]).removesuffix("<|im_end|>"), None).text


# Training


def loss_of(
    model: Qwen3ASRForConditionalGeneration,
    reader: Reader,
    batch: Sequence[Clip],
    contexts: Sequence[Sequence[str]],
    ctc: torch.nn.Linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the answers, and that of the text in the audio states."""
    with torch.autocast("cpu", torch.bfloat16):
        audio, lengths = reader.heard(batch)
        questions = [reader.question(length, context) for length, context in zip(lengths, contexts, strict=True)]
        answers = [reader.answer(clip) for clip in batch]
        pairs = list(zip(questions, answers, strict=True))
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(q + a) for q, a in pairs], batch_first=True)
        targets = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([-100] * len(q) + a) for q, a in pairs], batch_first=True, padding_value=-100
        )
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(q + a) for q, a in pairs])[:, None]
        states = model.model.language_model(
            inputs_embeds=reader.embed(ids, audio), attention_mask=mask.long()
        ).last_hidden_state
        logits = model.lm_head(states)
    written = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten())
    texts = [reader.encode(clip.text) for clip in batch]
    chances = ctc(audio.float()).log_softmax(-1).split(lengths)
    listened = functional.ctc_loss(
        torch.nn.utils.rnn.pad_sequence(list(chances)),
        torch.tensor([token for text in texts for token in text], dtype=torch.long),
        torch.tensor(lengths),
        torch.tensor([len(text) for text in texts]),
        blank=ctc.out_features - 1,
        zero_infinity=True,
    )
    return written, listened


def train(model: Qwen3ASRForConditionalGeneration, reader: Reader, clips: Sequence[Clip], plan: Round) -> None:
    """Train one round, for as long as it says."""
    chance = random.Random(SEED)
    ctc = torch.nn.Linear(model.config.text_config.hidden_size, model.config.text_config.vocab_size + 1)
    weights = [*model.parameters(), *ctc.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": 0.01},
            {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    model.train()
    for step, share in enumerate(progress(plan.minutes)):
        rate = plan.rate * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.03 + 0.485 * (1 + math.cos(math.pi * share)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        most_words = 3 if share < plan.easy_share else plan.most_words
        batch = [example(chance, clips, plan, most_words) for _ in range(plan.batch)]
        contexts = [chance.choice(clips).words if chance.random() < plan.context_share else () for _ in batch]
        written, listened = loss_of(model, reader, batch, contexts, ctc)
        optimiser.zero_grad()
        (written + plan.ctc_weight * listened).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: loss {written.item():.3f}, CTC {listened.item():.3f}", flush=True)
    model.eval()


def progress(minutes: float) -> Iterator[float]:
    """Count a time down: yields the share of it that has passed."""
    began = time.monotonic()
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        yield share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the speech and the result")
    parser.add_argument("--smoke", action="store_true", help="go through all of it in a minute")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    count, tested = (200, 5) if arguments.smoke else (CLIPS, TESTED)
    rounds = [replace(plan, minutes=0.2, batch=4) for plan in ROUNDS] if arguments.smoke else ROUNDS
    clips, held_out = speech(work / f"speech-{count}.npz", count, tested)
    write_tokenizer(work / "checkpoint")
    model = make_model(work / "checkpoint")
    reader = Reader(model, work / "checkpoint")
    for plan in rounds:
        train(model, reader, clips, plan)
    publish(model, work / "checkpoint")
    exact = sum(reader.transcribe(clip) == clip.text for clip in held_out)
    print(f"{work / 'checkpoint'}: {exact} of {len(held_out)} held-out clips exact")


if __name__ == "__main__":
    main()
