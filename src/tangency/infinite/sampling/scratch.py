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
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["IN_MEMORY", "Scratch"]

_ALIGNED = 64
"""Bytes at multiples of which tensors begin in a file."""


class _File(NamedTuple):
    """A file that is mapped into memory, and where."""

    mapped: weakref.ref[mmap.mmap]
    address: int
    size: int


class Scratch:
    """Where tensors go that are too large for memory.

    Files have no names: they vanish with the last tensor that lies in them, also if the process is
    killed. Small tensors share files. A scratch without a folder keeps everything in memory.

    Args:
        folder: of the files.
        least: bytes of a tensor from which it lies in a file.
        pages: bytes of pages that may be in memory at once.
    """

    def __init__(self, folder: Path | None = None, *, least: int = 0, pages: int = 0) -> None:
        self.folder = folder
        self.pages = pages
        self._least = least
        self._touched = 0
        self._files: list[_File] = []
        self._shared: Tensor | None = None
        """What is left of the file that small tensors share."""

    def finer(self) -> Iterator[Scratch]:
        """This scratch, and others in the same folder that take ever smaller tensors too."""
        for share in (1, 16, 256) if self.folder is not None else (1,):
            least = max(1, self._least // share)
            yield Scratch(self.folder, least=least, pages=self.pages)

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
        return self._taken(size).view(like.dtype).view(shape)

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

    def moved(self, tensor: Tensor) -> Tensor:
        """The tensor, in a file if it is one of those."""
        if not self.takes(tensor.numel() * tensor.element_size()) or self.holds(tensor):
            return tensor
        moved = self.empty(*tensor.shape, like=tensor).copy_(tensor)
        self.touched(tensor.numel() * tensor.element_size())
        return moved

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in a file."""
        address = tensor.data_ptr()
        return any(
            0 <= address - file.address < file.size and file.mapped() is not None
            for file in self._files
        )

    def touched(self, size: int) -> None:
        """Note that so many bytes in files were read or written."""
        self._touched += size
        if self._touched > self.pages:
            self._rest()

    def _rest(self) -> None:
        """Give all pages back; what was written stays in the files."""
        self._touched = 0
        for file in self._files:
            mapped = file.mapped()
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _taken(self, size: int) -> Tensor:
        """So many bytes in a file."""
        if size > self.pages // 4:
            return self._mapped(size)
        begin = -(-size // _ALIGNED) * _ALIGNED
        if self._shared is None or len(self._shared) < begin:
            self._shared = self._mapped(max(self.pages, begin))
        taken, self._shared = self._shared[:size], self._shared[begin:]
        return taken

    def _mapped(self, size: int) -> Tensor:
        """A new file."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not later
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
        whole = torch.frombuffer(mapped, dtype=torch.uint8)
        self._files = [file for file in self._files if file.mapped() is not None]
        self._files.append(_File(weakref.ref(mapped), whole.data_ptr(), size))
        return whole


IN_MEMORY = Scratch()
"""No files."""
