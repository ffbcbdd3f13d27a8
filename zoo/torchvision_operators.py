"""Lets torchvision's models be imported on a torch without CUDA.

The torchvision wheel of the package index is built for CUDA. On a CPU-only torch its compiled
operators cannot be loaded, which torchvision tolerates, but it then registers shape rules for two
of them that do not exist and fails. Declaring their schemas first is enough for its models and
transforms (nothing here detects boxes).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

__all__ = ["declare_missing_operators"]

MISSING = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []
"""Schemas live as long as the library object that declared them."""


def declare_missing_operators() -> None:
    """Declare the operators unless torchvision's own compiled ones load; call before its import."""
    if _declared or _compiled_operators_load():
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in MISSING:
        library.define(name + SCHEMA)
    _declared.append(library)


def _compiled_operators_load() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for file in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(file)
    except OSError:
        return False
    return True
