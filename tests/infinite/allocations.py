"""Counting the memory that tensors take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tangency.infinite.sampling.scratch import Scratch


class Allocations(TorchDispatchMode):
    """The peak of the bytes that tensors with data take; those in files are counted apart."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.total = self.peak = 0
        self.in_files = 0
        """Bytes of all tensors in files that there were."""
        self._files: set[int] = set()
        self._map = Scratch._mapped

    def __enter__(self) -> Self:
        def mapped(scratch: Scratch, size: int) -> torch.Tensor:
            tensor = self._map(scratch, size)
            storage = tensor.untyped_storage()
            self._files.add(storage._cdata)
            weakref.finalize(storage, self._files.discard, storage._cdata)
            self.in_files += size
            return tensor

        Scratch._mapped = mapped  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        Scratch._mapped = self._map  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive and storage._cdata not in self._files:
                    self.alive[storage._cdata] = storage.nbytes()
                    self.total += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self.total)
        return result

    def _freed(self, storage: int) -> None:
        self.total -= self.alive.pop(storage)
