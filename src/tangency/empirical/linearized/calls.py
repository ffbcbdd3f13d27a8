"""A call of a module at other parameters than its own, and what it returned, taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from tangency.empirical.function import differentiable_copy

__all__ = ["Call", "Returned"]


@dataclass(frozen=True)
class Returned:
    """What a module returned, taken apart.

    Attributes:
        real: its real tensors, which have derivatives.
        other: its other tensors.
        layout: the rest: where they stand, and what is no tensor.
    """

    real: tuple[Tensor, ...]
    other: tuple[Tensor, ...]
    layout: tuple[list[Any], pytree.TreeSpec]

    @classmethod
    def of(cls, returned: object) -> Returned:
        """Take apart any pytree."""
        leaves, spec = pytree.tree_flatten(returned)
        kinds = [_kind(leaf) for leaf in leaves]
        real = tuple(leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == "real")
        other = tuple(leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == "other")
        plain = [
            (kind, None if isinstance(leaf, Tensor) else leaf)
            for leaf, kind in zip(leaves, kinds, strict=True)
        ]
        return cls(real, other, (plain, spec))

    def whole(self) -> Any:
        """Put together again."""
        plain, spec = self.layout
        parts = {"real": iter(self.real), "other": iter(self.other)}
        leaves = [next(parts[kind]) if kind in parts else leaf for kind, leaf in plain]
        return pytree.tree_unflatten(leaves, spec)


def _kind(leaf: object) -> str:
    if not isinstance(leaf, Tensor):
        return "plain"
    return "real" if leaf.is_floating_point() else "other"


@dataclass(frozen=True)
class Call:
    """A call of `network` at other parameters than its own.

    Attributes:
        network: the module; the values of its own parameters do not matter.
        initial: parameters to expand in -> theta_0.
        displacement: the same -> theta - theta_0.
        frozen: values of its other parameters.
        buffers: values of its buffers; copies are used.
        args: positional arguments.
        kwargs: keyword arguments.
    """

    network: nn.Module
    initial: Mapping[str, Tensor]
    displacement: Mapping[str, Tensor]
    frozen: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, values: Mapping[str, Tensor]) -> Returned:
        """What the network returns with `values` for the parameters to expand in."""
        state = {**self._copies(), **self.frozen, **values}
        return Returned.of(functional_call(self.network, state, self.args, dict(self.kwargs)))

    def run_own(self) -> tuple[Returned, list[nn.Parameter]]:
        """What it returns with its own parameters, at theta_0, for autograd; and those."""
        own = dict(self.network.named_parameters())
        for name, value in {**self.frozen, **self.initial}.items():
            if own[name].data_ptr() != value.data_ptr():
                own[name].data = value.detach()
        call = self.detached()
        returned = functional_call(self.network, self._copies(), call.args, dict(call.kwargs))
        return Returned.of(returned), [own[name] for name in self.initial]

    def detached(self) -> Call:
        """The call with arguments that carry no gradient and are not of inference mode."""
        given = differentiable_copy((self.args, dict(self.kwargs)))
        args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", given)
        return replace(self, args=args, kwargs=kwargs)

    def has_differentiable_arguments(self) -> bool:
        """Whether autograd is to follow the arguments of the call."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor))
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def _copies(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.buffers.items()}
