"""Regenerate `tests/data/mel`: what the model's own code makes of a few clips and of every length.

Run as `python scripts/make_mel_reference.py` in an environment with vllm 0.32 (which brings transformers and torch)
and PyAV; the tests need none of these, because what this makes is committed.

`reference.npz` holds as `filters` the filter bank, and by its name each clip of `reference.json`: float32
[128, frames], the frames listed there. `audio_tokens.json` holds the encoder's output length for 0, 1, 2, … frames.
"""

import json
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.qwen3_asr.feature_extraction_qwen3_asr import Qwen3ASRFeatureExtractor
from transformers.models.qwen3_asr.modeling_qwen3_asr import _get_feat_extract_output_lengths as transformers_lengths
from vllm.model_executor.models.qwen3_asr import _get_feat_extract_output_lengths as vllm_lengths

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
TARGET = DATA / "mel"
RATE = 16_000
LONGEST_FRAMES = 1_700
"""Two windows of the encoder and a bit."""
CLIPS = {
    "padded": ("prompts/queue-thankyou.flac", 4_800),
    "ragged": ("prompts/conf-errormenu.flac", 20_007),
    "gridded": ("prompts/queue-periodic-announce.flac", 30_720),
    "windowed": ("paragraphs/nonstop_30s.flac", 290_560),
}
"""Name, file and length in samples."""


def main() -> None:
    extract = Qwen3ASRFeatureExtractor()
    arrays = {"filters": extract.mel_filters.T.astype(np.float32)}
    clips = {}
    for name, (file, samples) in CLIPS.items():
        audio = read(DATA / "speech" / file)[:samples]
        assert len(audio) == samples
        features = features_of(extract, audio)
        if samples >= RATE // 2:
            whisper = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
            assert np.array_equal(features, features_of(whisper, audio)), "the two layouts disagree"
        frames = chosen(features.shape[1])
        arrays[name] = features[:, frames]
        clips[name] = {"file": file, "samples": samples, "total_frames": features.shape[1], "frames": frames}
    TARGET.mkdir(exist_ok=True)
    np.savez_compressed(TARGET / "reference.npz", **arrays)
    write(TARGET / "reference.json", clips)

    lengths = torch.arange(LONGEST_FRAMES + 1)
    assert torch.equal(vllm_lengths(lengths), transformers_lengths(lengths))
    write(TARGET / "audio_tokens.json", vllm_lengths(lengths).tolist())


def features_of(
    extractor: WhisperFeatureExtractor | Qwen3ASRFeatureExtractor, audio: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return float32 [128, frames] as the processor asks for it, without the padding that its mask marks."""
    output = extractor(
        audio, sampling_rate=RATE, padding=True, truncation=False, return_attention_mask=True, return_tensors="np"
    )
    return output["input_features"][0][:, output["attention_mask"][0].astype(bool)]


def chosen(frames: int) -> list[int]:
    """Return every frame of a short clip; of a long one those around window borders, and each fortieth."""
    if frames <= 800:
        return list(range(frames))
    borders = {at for border in range(0, frames, 800) for at in range(border - 4, border + 4)}
    return sorted(at for at in borders | set(range(0, frames, 40)) | {frames - 2, frames - 1} if 0 <= at < frames)


def read(path: Path) -> npt.NDArray[np.float32]:
    """Return a mono 16 kHz, 16-bit file as float32 [n] in [-1, 1]."""
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(blocks).astype(np.float32) / np.float32(2**15)


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
