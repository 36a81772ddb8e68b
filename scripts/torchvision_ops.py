"""Declare the two operators of torchvision that a CPU build of torch lacks.

The torchvision on the package index is built for CUDA and cannot be imported beside a CPU torch, and vLLM imports it
with Qwen3-ASR. `vllm_env.sh` copies this file into the environment it makes, with a `.pth` file beside it that
imports it in every process; it acts when torchvision is imported, and only under a torch without CUDA.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class DeclareOnImport(MetaPathFinder):
    """Declares the operators just before torchvision is looked for, then leaves."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find nothing; called for every import until the one that matters."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                for operator in ("nms", "qnms"):
                    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    torch.library.define(f"torchvision::{operator}", signature)
        return None


sys.meta_path.insert(0, DeclareOnImport())
