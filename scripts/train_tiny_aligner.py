"""Train the forced aligner of `tests/data/tiny-aligner`, and make the clips it is tested on.

Phrases are joined from clips of single words, so the place of each word is known to the sample. A speaker is a voice at
one speed and pitch and says every word of its language once (Chinese: every character, as that is what is aligned).
The model is the one of `tests/data/tiny-qwen3-asr` with two more layers and a head of times instead of words. Its
audio encoder stays as it is, so that thousands of phrases need to be encoded only once; what learns is the part that
reads the text. Needs Debian's `espeak-ng` and `flite` and the environment of `scripts/vllm_env.sh` (torch,
transformers); one core is enough.

    .venvs/vllm/bin/python scripts/train_tiny_aligner.py words             # tests/data/tiny-words
    .venvs/vllm/bin/python scripts/train_tiny_aligner.py train WORK        # tests/data/tiny-aligner, WORK is scratch
"""

import argparse
import itertools
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from make_tiny_speech import (
    EN_DIGITS,
    EN_OTHERS,
    EN_THINGS,
    QUIET,
    RATE,
    ZH_DIGITS,
    ZH_OTHERS,
    ZH_THINGS,
    speak,
    store,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3ASRConfig, Qwen3ASRForTokenClassification

from qwen3_asr_server.audio.mel import LogMel

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
RECOGNISER = DATA / "tiny-qwen3-asr"
TARGET = DATA / "tiny-aligner"
WORDS = DATA / "tiny-words"

LEXICON = {
    "en": list(dict.fromkeys([*EN_DIGITS, *EN_THINGS, *EN_OTHERS.split()])),
    "zh": list(dict.fromkeys("".join([*ZH_DIGITS, *ZH_THINGS, *ZH_OTHERS.split()]))),
}
CLASS_MS = 80
CLASSES = 400
"""Times up to 32 s."""
LAYERS = 5
LONGEST_S = 28.0

TRAINED_SPEAKERS = {"en": 160, "zh": 120}
TESTED_SPEAKERS = {"en": 2, "zh": 2}
PHRASES = 14_000
BATCH_TOKENS = 4_500
SHORT, MIDDLING = 60, 130
"""Audio tokens of a phrase: 4.6 s and 10 s."""
SHORT_SHARE = 0.1
PEAK_RATE = 2e-3
WARM_UP_STEPS = 150
BLUR = 0.8
"""Standard deviation, in classes, of the target around the true time: a neighbour is nearly right."""
PLACE_WEIGHT = 0.3
"""Weight of what the audio tokens themselves must tell in a middle layer: where they are."""
PLACE_LAYER = 2
NAMES = [
    ("thinker.audio_tower.proj1.", "model.multi_modal_projector.linear_1."),
    ("thinker.audio_tower.proj2.", "model.multi_modal_projector.linear_2."),
    ("thinker.audio_tower.", "model.audio_tower."),
    ("thinker.model.", "model.language_model."),
    ("thinker.lm_head.", "score."),
]
"""Weights in the published layout, and in that of transformers."""

Pcm = npt.NDArray[np.int16]
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Speaker:
    """A voice that has said every word of its language."""

    language: str
    voice: str
    words: dict[str, Pcm]


@dataclass(frozen=True)
class Phrase:
    """Joined words."""

    units: list[str]
    times_ms: list[float]
    """Start and end of each unit."""
    audio: Samples


# Speech


def speak_all(counts: dict[str, int], seed: str) -> list[Speaker]:
    """Synthesize speakers; none is the same under another seed."""
    jobs = [(language, f"{seed} {language} {number}") for language, count in counts.items() for number in range(count)]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: _speak(*job), jobs))


def _speak(language: str, seed: str) -> Speaker:
    voice, words = "", {}
    for word in LEXICON[language]:
        # The same chance again: one voice, speed and pitch for all words.
        voice, samples = speak(random.Random(seed), language, [word])
        loud = np.flatnonzero(np.abs(samples) > QUIET * 32767)
        words[word] = samples[loud[0] : loud[-1] + 1]
    return Speaker(language, voice, words)


def join_words(chance: random.Random, speaker: Speaker, count: int) -> Phrase:
    """Say some words of a speaker one after the other, close together or with pauses."""
    parts: list[Pcm] = [_silence(chance.choice([0.0, chance.uniform(0, 0.6), chance.uniform(0, 2)]))]
    units, times_ms, at = [], [], len(parts[0])
    pace = chance.choice([0.05, 0.2, 0.6])
    for _ in range(count):
        unit = chance.choice(list(speaker.words))
        clip = speaker.words[unit]
        gap = _silence(chance.uniform(0, pace))
        if (at + len(clip) + len(gap)) / RATE > LONGEST_S:
            break
        units.append(unit)
        times_ms += [at * 1000 / RATE, (at + len(clip)) * 1000 / RATE]
        parts += [clip, gap]
        at += len(clip) + len(gap)
    parts.append(_silence(chance.choice([0.0, chance.uniform(0, 0.6)])))
    audio = np.concatenate(parts).astype(np.float32) / 32768 * chance.uniform(0.15, 1.0)
    noise = np.random.default_rng(chance.getrandbits(32)).standard_normal(len(audio), np.float32)
    return Phrase(units, times_ms, audio + noise * np.float32(10 ** chance.uniform(-5, -2.5)))


def _silence(seconds: float) -> Pcm:
    return np.zeros(round(seconds * RATE), np.int16)


def phrases(speakers: Sequence[Speaker], seed: str, number: int) -> Iterator[Phrase]:
    """Make phrases, most of them short."""
    chance = random.Random(seed)
    for _ in range(number):
        longest = chance.choice([3, 6, 7, 10, 10, 16, 45])
        yield join_words(chance, chance.choice(speakers), chance.randint(1, longest))


def write_words() -> None:
    """Write the clips of held-out speakers: one file a speaker, its words end to end."""
    shutil.rmtree(WORDS, ignore_errors=True)
    WORDS.mkdir(parents=True)
    lines = []
    for number, speaker in enumerate(speak_all(TESTED_SPEAKERS, "tested")):
        name = f"{speaker.language}-{number}.flac"
        store(WORDS / name, np.concatenate(list(speaker.words.values())))
        lengths = {word: len(clip) for word, clip in speaker.words.items()}
        lines.append({"file": name, "language": speaker.language, "voice": speaker.voice, "samples": lengths})
    manifest = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (WORDS / "speakers.jsonl").write_text(manifest, encoding="utf-8")


# Model


def make_model() -> Qwen3ASRForTokenClassification:
    """Return an aligner that begins with what the recogniser knows."""
    thinker = json.loads((RECOGNISER / "config.json").read_text(encoding="utf-8"))["thinker_config"]
    audio = {k: v for k, v in thinker["audio_config"].items() if k not in ("conv_chunksize", "max_source_positions")}
    text = {k: v for k, v in thinker["text_config"].items() if k not in ("rope_scaling", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": thinker["text_config"]["rope_theta"]}
    more = {"model_type": "qwen3", "num_hidden_layers": LAYERS, "rope_parameters": rope, "tie_word_embeddings": False}
    config = Qwen3ASRConfig(
        audio_config=audio | {"model_type": "qwen3_asr_encoder"},
        text_config=text | more,
        audio_token_id=thinker["audio_token_id"],
        tie_word_embeddings=False,
        num_labels=CLASSES,
        classifier_dropout=0.0,
    )
    torch.manual_seed(1)
    model = Qwen3ASRForTokenClassification(config)
    weights = load_file(RECOGNISER / "model.safetensors")
    known = {_renamed(name, *NAMES): weight for name, weight in weights.items()}
    missing, unexpected = model.load_state_dict(known, strict=False)
    fresh = tuple(f"model.language_model.layers.{layer}." for layer in range(LAYERS))
    assert not unexpected, unexpected
    assert all(name.startswith((*fresh, "score.")) for name in missing), missing
    with torch.no_grad():
        for layer in model.model.language_model.layers[thinker["text_config"]["num_hidden_layers"] :]:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
    return model


def _renamed(name: str, *prefixes: tuple[str, str]) -> str:
    """Return a name with the first prefix that it has exchanged."""
    return next(new + name.removeprefix(old) for old, new in prefixes if name.startswith(old))


def publish(model: Qwen3ASRForTokenClassification) -> None:
    """Write the checkpoint in the published layout, in 16 bits."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.json", "merges.txt", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"):
        shutil.copyfile(RECOGNISER / name, TARGET / name)
    config = json.loads((RECOGNISER / "config.json").read_text(encoding="utf-8"))
    thinker = config["thinker_config"]
    thinker |= {"model_type": "qwen3_forced_aligner", "classify_num": CLASSES, "tie_word_embeddings": False}
    # Without both of these the head is silently taken for the vocabulary's.
    thinker["text_config"] |= {"tie_word_embeddings": False, "num_hidden_layers": LAYERS}
    config |= {"dtype": "bfloat16", "timestamp_token_id": _timestamp_id(), "timestamp_segment_time": CLASS_MS}
    (TARGET / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    back = [(native, published) for published, native in NAMES]
    weights = {_renamed(name, *back): weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}
    save_file(weights, TARGET / "model.safetensors", metadata={"format": "pt"})


def _tokenizer() -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained(RECOGNISER)


def _timestamp_id() -> int:
    return int(_tokenizer().convert_tokens_to_ids("<timestamp>"))


# Training


@dataclass(frozen=True)
class Example:
    """A phrase whose audio the encoder has heard."""

    ids: torch.Tensor
    """int64 [n]."""
    audio: torch.Tensor
    """bfloat16 [k, hidden]: what stands in place of the k audio tokens."""
    classes: torch.Tensor
    """float32 [2 units]: true times in classes, not rounded."""


class Examples:
    """Turns phrases into what the model is given."""

    def __init__(self, model: Qwen3ASRForTokenClassification) -> None:
        self._model = model.model
        self._front = LogMel()
        tokenizer = _tokenizer()
        self._begin, self._pad, self._end = tokenizer.convert_tokens_to_ids(
            ["<|audio_start|>", "<|audio_pad|>", "<|audio_end|>"]
        )
        stamps = "<timestamp><timestamp>"
        words = itertools.chain.from_iterable(LEXICON.values())
        self._units = {word: tokenizer.encode(word + stamps, add_special_tokens=False) for word in words}

    def of(self, phrase: Phrase) -> Example:
        """Encode a phrase."""
        audio = self._encode(phrase.audio)
        text = itertools.chain.from_iterable(self._units[unit] for unit in phrase.units)
        ids = [self._begin, *[self._pad] * len(audio), self._end, *text]
        return Example(torch.tensor(ids), audio, torch.tensor(phrase.times_ms) / CLASS_MS)

    @torch.no_grad()
    def _encode(self, samples: Samples) -> torch.Tensor:
        mel = torch.from_numpy(self._front.whole(samples))
        padding = -mel.shape[1] % 100
        mask = functional.pad(torch.ones(1, mel.shape[1], dtype=torch.long), (0, padding))
        heard = self._model.get_audio_features(functional.pad(mel, (0, padding))[None], mask)
        return heard.pooler_output.to(torch.bfloat16)


def collate(model: Qwen3ASRForTokenClassification, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and embeddings, filled up at the end, with the audio in its place."""
    ids = torch.nn.utils.rnn.pad_sequence([example.ids for example in batch], batch_first=True)
    embedded = model.get_input_embeddings()(ids)
    audio = torch.cat([example.audio for example in batch]).to(embedded.dtype)
    places = (ids == model.config.audio_token_id)[..., None].expand_as(embedded)
    return ids, embedded.masked_scatter(places, audio)


def loss_of(model: Qwen3ASRForTokenClassification, batch: Sequence[Example], timestamp: int) -> torch.Tensor:
    """Return the error of the times, and of where the audio tokens believe they are."""
    ids, embedded = collate(model, batch)
    language = model.model.language_model
    heard = language(inputs_embeds=embedded, output_hidden_states=True)
    times = model.score(heard.last_hidden_state[ids == timestamp])
    places = model.score(language.norm(heard.hidden_states[PLACE_LAYER])[ids == model.config.audio_token_id])
    seconds = torch.cat([torch.arange(len(example.audio)) / 13 for example in batch])
    return blurred_loss(times, torch.cat([example.classes for example in batch])) + PLACE_WEIGHT * blurred_loss(
        places, seconds * 1000 / CLASS_MS
    )


def draw(chance: random.Random, examples: Sequence[Example], longest: int | None) -> list[Example]:
    """Return examples of like length, so that little is filled up; `longest` is the most audio tokens of one."""
    drawn = [e for e in chance.sample(examples, 256) if longest is None or len(e.audio) <= longest]
    drawn.sort(key=lambda example: len(example.ids))
    first = chance.randrange(len(drawn))
    fits = (
        count for count in range(len(drawn) - first, 0, -1) if count * len(drawn[first + count - 1].ids) <= BATCH_TOKENS
    )
    return drawn[first : first + next(fits, 1)]


def blurred_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy with a bell around each true time."""
    distance = torch.arange(CLASSES) - classes[:, None]
    target = torch.softmax(-(distance**2) / (2 * BLUR**2), dim=-1)
    return functional.cross_entropy(logits, target)


def train(work: Path, minutes: float, rate: float) -> None:
    """Train for some minutes, go on from what WORK holds, and publish."""
    torch.set_num_threads(1)
    model = make_model()
    kept = work / "model.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept))
    examples = _cached(work / "examples.pt", model, "trained", TRAINED_SPEAKERS, PHRASES)
    tested = _cached(work / "tested.pt", model, "tested", TESTED_SPEAKERS, 200)
    learning = [*model.model.language_model.parameters(), *model.score.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    chance, timestamp, began, losses = random.Random(time.time()), _timestamp_id(), time.monotonic(), []
    model.train()
    for step in itertools.count(1):
        share = (time.monotonic() - began) / (60 * minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / WARM_UP_STEPS) * (0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * share)))
        # First short ones only, then mostly, because their pieces of audio are what sessions have.
        longest = SHORT if share < SHORT_SHARE else chance.choice([None, MIDDLING, MIDDLING, SHORT])
        batch = draw(chance, examples, longest)
        loss = loss_of(model, batch, timestamp)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"{step:5d} {time.monotonic() - began:5.0f} s  loss {np.mean(losses[-100:]):.3f}", flush=True)
        if step % 500 == 0:
            torch.save(model.state_dict(), kept)
            print(report(model, tested, timestamp), flush=True)
    torch.save(model.state_dict(), kept)
    publish(model)
    print(report(model, tested, timestamp))


def _cached(
    path: Path, model: Qwen3ASRForTokenClassification, seed: str, counts: dict[str, int], number: int
) -> list[Example]:
    if path.exists():
        return list(torch.load(path, weights_only=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = Examples(model.eval())
    made = [encoder.of(phrase) for phrase in phrases(speak_all(counts, seed), seed, number)]
    torch.save(made, path)
    return made


@torch.no_grad()
def report(model: Qwen3ASRForTokenClassification, tested: Sequence[Example], timestamp: int) -> str:
    """Say how far the times of held-out speakers are from the truth."""
    model.eval()
    wrong: list[float] = []
    for example in tested:
        ids, embedded = collate(model, [example])
        heard = model.model.language_model(inputs_embeds=embedded).last_hidden_state[ids == timestamp]
        wrong += (CLASS_MS * (model.score(heard).argmax(-1) - example.classes).abs()).tolist()
    model.train()
    median, p95 = np.quantile(wrong, [0.5, 0.95])
    within = np.mean(np.array(wrong) <= 100)
    return f"held out: median {median:.0f} ms, p95 {p95:.0f} ms, {within:.1%} within 100 ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["words", "train"])
    parser.add_argument("work", type=Path, nargs="?", help="scratch folder")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    given = parser.parse_args()
    if given.what == "words":
        write_words()
    elif given.work is None:
        sys.exit("train needs a scratch folder")
    else:
        train(given.work, given.minutes, given.rate)


if __name__ == "__main__":
    main()
