"""Large tensors in files, for what a sampled kernel does not hold in memory.

A tensor in a file is mapped into memory page by page, as it is read and written. Pages that were
touched count as the memory of the process until they are given back to the operating system, which
happens when they are many: what is in memory at once stays bounded, however large the files are.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["IN_MEMORY", "Scratch"]


class Scratch:
    """Where tensors go that are too large for memory.

    Files have no names: they vanish with the last tensor that lies in them, also if the process is
    killed. A scratch without a folder keeps everything in memory.

    Args:
        folder: of the files.
        least: bytes of a tensor from which it lies in a file.
        pages: bytes of pages that may be in memory at once.
    """

    def __init__(self, folder: Path | None = None, *, least: int = 0, pages: int = 0) -> None:
        self.folder = folder
        self._least = least
        self.pages = pages
        self._touched = 0
        self._maps: list[weakref.ref[mmap.mmap]] = []

    @property
    def free(self) -> int:
        """Bytes that files may take; none without a folder."""
        return 0 if self.folder is None else shutil.disk_usage(self.folder).free

    def takes(self, size: int) -> bool:
        """Whether a tensor of so many bytes lies in a file."""
        return self.folder is not None and size >= self._least

    def empty(self, *shape: int, like: Tensor) -> Tensor:
        """A tensor of this shape, with the type of another, in memory or in a file."""
        size = like.element_size() * math.prod(shape)
        if not self.takes(size) or like.device.type != "cpu":
            return like.new_empty(shape)
        return self._mapped(size, like.dtype).view(shape)

    def covariance(self, *shape: int, like: Tensor) -> Tensor:
        """A covariance `(*dims, n, n)`; in a file, what belongs to a pair of examples lies
        together.
        """
        *dims, n1, n2 = shape
        if not self.takes(like.element_size() * math.prod(shape)):
            return like.new_empty(shape)
        return self.empty(n1, n2, *dims, like=like).permute(*range(2, len(shape)), 0, 1)

    def rows(self, matrix: Tensor) -> Iterator[slice]:
        """The rows of a matrix, some at a time; the pages of those before may be given back."""
        size = matrix.element_size() * matrix.shape[1:].numel()
        step = len(matrix) if not self.holds(matrix) else max(1, self.pages // 4 // size)
        for start in range(0, len(matrix), step):
            some = slice(start, min(start + step, len(matrix)))
            yield some
            self.touched(size * (some.stop - some.start))

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in a file, by the size of what it is a part of."""
        return self.takes(tensor.untyped_storage().nbytes())

    def touched(self, size: int) -> None:
        """Note that so many bytes in files were read or written."""
        self._touched += size
        if self._touched > self.pages:
            self._rest()

    def _rest(self) -> None:
        """Give all pages back; what was written stays in the files."""
        self._touched = 0
        self._maps = [reference for reference in self._maps if reference() is not None]
        for reference in self._maps:
            mapped = reference()
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _mapped(self, size: int, dtype: torch.dtype) -> Tensor:
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not later
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
        self._maps.append(weakref.ref(mapped))
        return torch.frombuffer(mapped, dtype=dtype)


IN_MEMORY = Scratch()
"""No files."""
