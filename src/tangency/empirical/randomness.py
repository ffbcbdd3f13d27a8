"""Modules that return different outputs for the same input: found out, and the culprit named."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tangency.errors import InvalidInput

__all__ = ["drawn", "preserved", "refusal"]

PASSES = 16
"""Passes in which a dropout of a few units with a small probability shows itself."""

Same = Callable[[Tensor, Tensor], bool]


@contextmanager
def preserved(devices: Sequence[torch.device]) -> Iterator[None]:
    """Put back the random state of torch (CPU and CUDA `devices`), Python and NumPy."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _state(device: torch.device) -> tuple[object, ...]:
    """The state of every generator that a module may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    legacy: dict[str, Any] = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    numpy = legacy["key"].tobytes(), legacy["pos"]
    return (*(bytes(s.numpy()) for s in states), random.getstate(), numpy)


def drawn(run: Callable[[], Tensor]) -> tuple[Tensor, bool]:
    """What `run` returns, and whether it drew random numbers meanwhile."""
    device = torch.device("cuda") if torch.cuda.is_initialized() else torch.device("cpu")
    before = _state(device)
    value = run()
    return value, _state(device) != before


@dataclass(frozen=True)
class _Call:
    """A call of a submodule in one pass."""

    path: str
    given: list[Tensor]
    returned: list[Tensor]

    def differs(self, other: _Call, same: Same) -> bool:
        """Whether it turned the same input into something else."""
        return _all(same, self.given, other.given) and not _all(same, self.returned, other.returned)


def _all(same: Same, left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) or (a.is_floating_point() and same(a, b))
        for a, b in zip(left, right, strict=True)
    )


def refusal(
    model: nn.Module, run: Callable[[], object], same: Same, *, random: bool
) -> InvalidInput:
    """The error for `model`, whose outputs differ from one `run` to the next.

    It names the innermost submodule that turns the same input into different outputs, which
    forward hooks find out; they are removed again. `random` says whether random numbers are drawn.
    """
    path = _culprit(model, run, same)
    module = model.get_submodule(path)
    where = f"module '{path}' ({type(module).__name__})" if path else type(module).__name__
    if not random:
        reason, advice = "changes with each call", _STATE
    else:
        reason = "makes the outputs random"
        advice = _TRAINING if module.training else _EVALUATION
    return InvalidInput(f"{where} {reason}: the same example has different outputs. {advice}")


_TRAINING = (
    "It is in training mode: call model.eval() first; what is random even then must be removed, or "
    "become a part of the data."
)
_EVALUATION = (
    "It is in evaluation mode, so its forward draws random numbers in any mode (F.dropout does "
    "unless it is given training=self.training): change that, or pass them as data."
)
_STATE = "Remove what its forward keeps from call to call (a counter, a cache, a running average)."


def _culprit(model: nn.Module, run: Callable[[], object], same: Same) -> str:
    first = _calls(model, run)
    for _ in range(PASSES):
        second = _calls(model, run)  # chance may decide which modules are called
        for key, call in first.items():
            if key in second and call.differs(second[key], same):
                return call.path
    return ""


def _calls(model: nn.Module, run: Callable[[], object]) -> dict[tuple[str, int], _Call]:
    """The calls of all submodules, in the order in which they end: the innermost first.

    By the module's path, and how often it was called before.
    """
    ended: dict[tuple[str, int], _Call] = {}
    count: Counter[str] = Counter()
    open_calls: list[list[Tensor]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        open_calls.append(_tensors((args, kwargs)))

    def leave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
            ended[path, count[path]] = _Call(path, open_calls.pop(), _tensors(returned))
            count[path] += 1

        return hook

    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave(path), with_kwargs=True))
        run()
    finally:
        for handle in handles:
            handle.remove()
    return ended


def _tensors(value: object) -> list[Tensor]:
    """Copies: operations in place may follow."""
    return [leaf.detach().clone() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
