"""Memory that generated code reads and writes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pointers", "address", "integer", "pointers", "table", "zeros"]

Pointers = ctypes.Array[ctypes.c_void_p]

Array = NDArray[np.generic]

_LINE = 64


def zeros(size: int, guard: int = 0) -> NDArray[np.uint8]:
    """Bytes that begin at a cache line, with at least `guard` further zeros on both sides."""
    before = -(-guard // _LINE) * _LINE
    raw = np.zeros(size + 2 * before + _LINE, dtype=np.uint8)
    start = before + -raw.ctypes.data % _LINE
    return raw[start : start + size]


def address(array: Array) -> ctypes.c_void_p:
    """The pointer to an array."""
    return ctypes.c_void_p(array.ctypes.data)


def pointers(tensors: Sequence[Tensor]) -> Pointers:
    """A table of pointers to tensors."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))


def table(arrays: Sequence[Array | Pointers]) -> Pointers:
    """A table of pointers to arrays, or to other tables."""
    found = (
        array.ctypes.data if isinstance(array, np.ndarray) else ctypes.addressof(array)
        for array in arrays
    )
    return (ctypes.c_void_p * max(1, len(arrays)))(*found)


def integer(number: int) -> ctypes.c_long:
    """A C long."""
    return ctypes.c_long(number)
