"""Regenerate `tests/data/speech`: human prompts, synthesised paragraphs and one short conversation.

Needs three Debian packages (the tests need none, because what this makes is committed):
`asterisk-core-sounds-en`, `asterisk-core-sounds-en-g722` and `flite`. Sources, licences and every change
are written down in `tests/data/speech/README.md`. Run as `uv run python scripts/make_speech.py`.
"""

import gzip
import json
import re
import subprocess
import tempfile
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
TARGET = Path(__file__).resolve().parents[1] / "tests" / "data" / "speech"
RATE = 16_000

FAMILIES = re.compile(r"(?:conf-|queue-|tt-|followme/|dictate/)\S+")
NOT_SPEECH = {"tt-monkeys"}
SPELLING = {
    "umute": "unmute",
    "represenatives": "representatives",
    "*": "star",
    "#": "pound",
    "...": "",
}

NONSTOP = "nonstop_30s"
PARAGRAPHS = {
    "paragraph_35s": """
        The old ferry leaves the harbor every morning at seven. It carries workers, school children and a few
        visitors across the bay. The trip takes about twenty minutes when the water is calm. In winter the wind
        often comes from the north, and the crossing is slow and cold. Most people sit inside and drink coffee.
        Some of them read the paper, and others look out of the window. When the boat arrives on the other side,
        everybody walks up the hill to the market. The captain has done this work for thirty years. He says that
        no two days are the same.
        """,
    "paragraph_75s": """
        Our town has a small library near the river. It was built more than a hundred years ago, and the stone
        walls keep the rooms cool in summer. Every Monday a group of people meets there to talk about books.
        They sit around a large table, and each person says what he or she liked. Sometimes they agree, but most
        of the time they do not. Last week the story was about a man who travels around the world on a train.
        One woman said that the story was too long. Another said that she could not stop reading it.
        The library also has a room for children. On Saturday a teacher comes and reads to them for an hour.
        After that they draw pictures of what they have heard. The best pictures are put on the wall near the
        door. In the evening the building is quiet. A few students stay until it closes at nine, because they
        have no other place to work. The woman who runs the library knows most of them by name. She walks from
        room to room, turns off the lights, and closes the windows. Then she takes her coat and goes home along
        the river. If the weather is good, she stops on the bridge and looks at the water for a minute.
        """,
    NONSTOP: """
        we walked along the road that goes from the house on the hill to the farm where my brother keeps his
        horses and on the way we talked about the people who used to live there and about the long summer when
        nobody had any water and about the man who came every week with a big red truck to bring us food and
        letters from the city until one day he told us that he was going to stop because his wife wanted to move
        to another country where the weather was better and where her sister had opened a small restaurant by
        the sea
        """,
}

STRETCH = "1.25"
QUIET = 100
LONGEST_QUIET_MS = 60

CONVERSATION = ["followme-status", "queue-youarenext", "conf-waitforleader", "queue-thankyou"]
CONVERSATION_EDGE_S = 0.5
CONVERSATION_GAP_S = 1.2


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    prompts = make_prompts()
    make_paragraphs()
    make_conversation(prompts)


def make_prompts() -> dict[str, tuple[npt.NDArray[np.int16], str]]:
    """Convert the prompts and write `prompts.jsonl`; returns samples and text by name."""
    prompts = {}
    lines = []
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8", errors="replace") as listing:
        for line in listing:
            source, colon, text = line.strip().partition(": ")
            if not colon or not FAMILIES.fullmatch(source) or source in NOT_SPEECH:
                continue
            name = source.replace("/", "-")
            samples = read_g722(SOUNDS / f"{source}.g722")
            prompts[name] = samples, tidy(text)
            lines.append(store(f"prompts/{name}.flac", samples, tidy(text)))
    write_manifest("prompts.jsonl", lines)
    return prompts


def make_paragraphs() -> None:
    """Let flite speak the paragraphs and write `paragraphs.jsonl`."""
    lines = []
    for name, text in PARAGRAPHS.items():
        spoken = " ".join(text.split())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            subprocess.run(
                ["flite", "-voice", "slt", "--setf", f"duration_stretch={STRETCH}", "-t", spoken, "-o", path],
                check=True,
            )
            samples = read_wav(path)
        if name == NONSTOP:
            samples = without_pauses(samples)
        lines.append(store(f"paragraphs/{name}.flac", samples, spoken))
    write_manifest("paragraphs.jsonl", lines)


def make_conversation(prompts: dict[str, tuple[npt.NDArray[np.int16], str]]) -> None:
    """Join four prompts with silences and write `conversation.wav` with its manifest."""
    audio = [np.zeros(round(CONVERSATION_EDGE_S * RATE), np.int16)]
    turns = []
    for name in CONVERSATION:
        if turns:
            audio.append(np.zeros(round(CONVERSATION_GAP_S * RATE), np.int16))
        samples, text = prompts[name]
        start = sum(len(part) for part in audio)
        turns.append(
            {"name": name, "text": text, "start_s": start / RATE, "end_s": (start + len(samples)) / RATE},
        )
        audio.append(samples)
    audio.append(np.zeros(round(CONVERSATION_GAP_S * RATE), np.int16))
    whole = np.concatenate(audio)
    with wave.open(str(TARGET / "conversation.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(whole.astype("<i2").tobytes())
    manifest = {
        "file": "conversation.wav",
        "text": " ".join(text for _, text in (prompts[name] for name in CONVERSATION)),
        "seconds": round(len(whole) / RATE, 3),
        "turns": turns,
    }
    (TARGET / "conversation.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def tidy(text: str) -> str:
    for wrong, right in SPELLING.items():
        text = text.replace(wrong, right)
    return " ".join(text.split())


def read_g722(path: Path) -> npt.NDArray[np.int16]:
    with av.open(str(path), format="g722") as container:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def read_wav(path: Path) -> npt.NDArray[np.int16]:
    with wave.open(str(path), "rb") as source:
        if (source.getframerate(), source.getnchannels(), source.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path.name} is not 16 kHz mono s16")
        return np.frombuffer(source.readframes(source.getnframes()), "<i2").astype(np.int16)


def without_pauses(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Shorten every quiet stretch to `LONGEST_QUIET_MS`, in frames of 10 ms."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    kept = []
    quiet_frames = 0
    for frame in frames:
        quiet_frames = quiet_frames + 1 if np.sqrt(np.mean(frame.astype(np.float64) ** 2)) < QUIET else 0
        if quiet_frames * 10 <= LONGEST_QUIET_MS:
            kept.append(frame)
    return np.concatenate(kept)


def store(file: str, samples: npt.NDArray[np.int16], text: str) -> dict[str, object]:
    """Write one FLAC file and return its line of the manifest."""
    path = TARGET / file
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        stream.time_base = Fraction(1, RATE)
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis, :], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return {"file": file, "text": text, "seconds": round(len(samples) / RATE, 3)}


def write_manifest(name: str, lines: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
