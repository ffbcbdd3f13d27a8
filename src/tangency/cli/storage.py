"""Kernels in files: .npz or .safetensors, never pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor

from tangency.errors import InvalidInput, MissingDependency

__all__ = ["check_suffix", "load_kernel", "save"]

SUFFIXES = (".npz", ".safetensors")


def check_suffix(out: Path) -> None:
    """Refuse, as bad usage and before any work, a file name that `save` could not write."""
    if out.suffix not in SUFFIXES:
        raise typer.BadParameter(
            f"'{out}' must end in {' or '.join(SUFFIXES)}.", param_hint="--out"
        )


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to a .npz or .safetensors file.

    Raises:
        InvalidInput: another kind of file, or one that cannot be written.
        MissingDependency: safetensors is asked for and not installed.
    """
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {name: t.numpy() for name, t in ready.items()}
            np.savez_compressed(path, **arrays)
        elif path.suffix == ".safetensors":
            try:
                from safetensors.torch import save_file
            except ImportError as error:
                raise MissingDependency.for_extra("safetensors", "safetensors") from error
            save_file(ready, str(path))
        else:
            raise InvalidInput(f"{path}: the name must end in {' or '.join(SUFFIXES)}.")
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}.") from error


def load_kernel(path: Path) -> tuple[Tensor, Tensor | None] | None:
    """`kernel` and, where there are some, `targets` of a file; None if it holds no kernel.

    Raises:
        InvalidInput: a file that cannot be read.
        MissingDependency: safetensors is needed and not installed.
    """
    if path.suffix == ".npz":
        found = _read_npz(path)
    elif path.suffix == ".safetensors":
        found = _read_safetensors(path)
        if "kernel" not in found:
            names = ", ".join(found) or "none"
            raise InvalidInput(f"{path}: the tensor 'kernel' is missing (there are: {names}).")
    else:
        return None
    if "kernel" not in found:
        return None
    return found["kernel"], found.get("targets")


def _read_npz(path: Path) -> dict[str, Tensor]:
    """`kernel` and `targets` only: other arrays may be text, or a data set."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "kernel" not in getattr(archive, "files", ()):
                return {}
            names = [name for name in ("kernel", "targets") if name in archive.files]
            return {name: torch.from_numpy(archive[name]) for name in names}
    except Exception as error:  # zipfile, zlib, NumPy and torch raise kinds of their own
        raise InvalidInput(f"{path}: no readable kernel of numbers ({error}).") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependency.for_extra("safetensors", "safetensors") from error
    try:
        found: dict[str, Tensor] = load_file(str(path))
    except Exception as error:  # its own kinds
        raise InvalidInput(f"{path}: not a readable safetensors file ({error}).") from error
    return found
