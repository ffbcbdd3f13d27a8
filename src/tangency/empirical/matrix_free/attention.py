"""Attention in elementary operations, which every kind of differentiation knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["elementary_attention"]


class _NoFastPath(TorchFunctionMode):
    """Changes nothing; while such a mode is active, the attention modules of PyTorch leave out
    the fused operations of their evaluation mode, which have no derivative.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def elementary_attention() -> Iterator[None]:
    """Within it, attention is computed by matrix products and a softmax: the same function.

    The fused kernels have neither a derivative in forward mode nor a second one in reverse mode.
    """
    with sdpa_kernel(SDPBackend.MATH), _NoFastPath():
        yield
