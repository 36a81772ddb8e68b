"""Regenerate `tests/data/tiny-speech`: short clips that the tiny checkpoint understands.

Random phrases over the 62 words of `tests/data/tiny-qwen3-asr`, spoken by espeak-ng and flite, the synthesizers it was
trained with, at speeds and pitches that were not in its training. Needs Debian's packages `espeak-ng` and `flite`; the
tests need neither, because what this makes is committed. Run as `uv run python scripts/make_tiny_speech.py`.
"""

import json
import random
import subprocess
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soxr

TARGET = Path(__file__).resolve().parents[1] / "tests" / "data" / "tiny-speech"
RATE = 16_000
SEED = 20_261_121
CLIPS = {"en": 26, "zh": 26}

EN_THINGS = ["light", "door", "window", "music"]
EN_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
EN_COMMANDS = [
    "turn on the {}",
    "turn off the {}",
    "please open the {}",
    "close the {}",
    "start the {}",
    "stop the {}",
    "play the {}",
]
EN_OTHERS = "turn on off open close start stop play pause the please hello yes no red green blue left right up down"
ZH_THINGS = ["灯", "门", "窗户", "音乐"]
ZH_DIGITS = list("零一二三四五六七八九")
ZH_COMMANDS = ["请 打开 {}", "打开 {}", "请 关闭 {}", "关闭 {}", "播放 {}", "停止 {}"]
ZH_OTHERS = "打开 关闭 开始 停止 播放 请 你好 谢谢 红色 绿色 蓝色 左边 右边 早上 晚上"

FLITE_SHARE = 0.3
FLITE_VOICES = ["slt", "kal16", "awb", "rms", "kal"]
ESPEAK_VOICES = {"en": ["en-us", "en-us", "en-gb", "en-gb-scotland"], "zh": ["cmn"]}
ESPEAK_VARIANTS = ["", "+m1", "+m2", "+m3", "+m4", "+m7", "+f1", "+f2", "+f3", "+f4"]

QUIET = 0.01
LEAD_SAMPLES = 800
TAIL_SAMPLES = 1600


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    for old in TARGET.glob("*.flac"):
        old.unlink()
    lines = []
    for language, count in CLIPS.items():
        for number in range(count):
            chance = random.Random(f"{SEED} {language} {number}")
            words = phrase(chance, language, chance.choice([1, 2, 2, 3, 3, 4, 5]))
            voice, samples = speak(chance, language, words)
            name = f"{language}-{number:02d}"
            store(TARGET / f"{name}.flac", samples)
            text = (" " if language == "en" else "").join(words)
            lines.append(
                {
                    "file": f"{name}.flac",
                    "language": language,
                    "text": text,
                    "voice": voice,
                    "seconds": round(len(samples) / RATE, 3),
                }
            )
    manifest = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (TARGET / "clips.jsonl").write_text(manifest, encoding="utf-8")
    print(f"{len(lines)} clips, {sum(len_s['seconds'] for len_s in lines):.0f} s")


def phrase(chance: random.Random, language: str, count: int) -> list[str]:
    """Return a phrase: one in five digits, one in five a command, else any words."""
    things, digits, commands, others = (
        (EN_THINGS, EN_DIGITS, EN_COMMANDS, EN_OTHERS)
        if language == "en"
        else (ZH_THINGS, ZH_DIGITS, ZH_COMMANDS, ZH_OTHERS)
    )
    sort = chance.random()
    if sort < 0.2:
        return chance.choices(digits, k=count)
    if sort < 0.4:
        return chance.choice(commands).format(chance.choice(things)).split()
    return chance.choices([*digits, *things, *others.split()], k=count)


def speak(chance: random.Random, language: str, words: list[str]) -> tuple[str, npt.NDArray[np.int16]]:
    """Return the voice that was used and its speech, with a little silence at both ends."""
    text = " ".join(words)
    if language == "en" and chance.random() < FLITE_SHARE:
        name = chance.choice(FLITE_VOICES)
        stretch = f"duration_stretch={chance.uniform(0.85, 1.25):.2f}"
        voice = f"flite {name} {stretch}"
        command = ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", "/dev/stdout"]
    else:
        name = chance.choice(ESPEAK_VOICES[language]) + chance.choice(ESPEAK_VARIANTS)
        speed, pitch = str(chance.randint(115, 190)), str(chance.randint(25, 75))
        voice = f"espeak-ng {name} speed {speed} pitch {pitch}"
        command = ["espeak-ng", "-v", name, "-s", speed, "-p", pitch, "--stdout", text]
    samples = read(subprocess.run(command, capture_output=True, check=True).stdout)
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    cut = samples[max(0, loud[0] - LEAD_SAMPLES) : loud[-1] + TAIL_SAMPLES]
    return voice, np.rint(np.clip(cut, -1, 1) * 32767).astype(np.int16)


def read(wav: bytes) -> npt.NDArray[np.float32]:
    """Return the samples of a WAV file at 16 kHz. The synthesizers write no true length, as they write to a pipe."""
    begin = wav.index(b"data") + 8
    rate = int.from_bytes(wav[24:28], "little")
    samples = np.frombuffer(wav[begin : begin + (len(wav) - begin) // 2 * 2], "<i2").astype(np.float32) / 32768
    return soxr.resample(samples, rate, RATE) if rate != RATE else samples


def store(path: Path, samples: npt.NDArray[np.int16]) -> None:
    buffer = BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", options={"compression_level": "12"})
        stream.time_base = Fraction(1, RATE)
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis, :], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
