"""Counts, inside vLLM's worker, the windows that the audio encoder is given.

vLLM mixes this class into its worker (`worker_extension_cls`); its methods are called from outside by name.
"""

from typing import Any


class EncoderCount:
    """Methods for the worker."""

    model_runner: Any

    def count_windows(self) -> None:
        """Begin to count."""
        model = self.model_runner.model
        encode = model.embed_multimodal
        self.window_frames: list[int] = []

        def counted(**inputs: Any) -> Any:
            self.window_frames += [int(length) for length in inputs["audio_feature_lengths"].flatten()]
            return encode(**inputs)

        model.embed_multimodal = counted

    def counted_windows(self) -> list[int]:
        """Return the frames of every window encoded so far."""
        return self.window_frames
