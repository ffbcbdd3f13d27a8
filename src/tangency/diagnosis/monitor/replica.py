"""A copy of the network in training, on which everything is measured."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import linearize
from tangency.empirical.function import evaluate, named, trainable, unwrapped
from tangency.empirical.linearized.linearization import TaylorModel
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["Replica"]

_WRAPPERS = ("_orig_mod.", "module.")
"""What `torch.compile` and `DistributedDataParallel` put before the names of parameters."""


class Replica:
    """A copy in evaluation mode, and its linearisation about the parameters that it begins with.

    The copy shares nothing with the module: it can be measured without a trace in the training.
    Forward and backward hooks of the module (which may log or count) are not run on it, but for
    those by which `torch.nn.utils` computes weights.

    Attributes:
        network: the copy.
        start: its trainable parameters at the beginning, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises InvalidInput for what is no module, cannot be copied or is all frozen."""
        self.network = _copied(unwrapped(model)).eval()
        free = trainable(named(self.network, None))
        self.start = {name: p.detach().clone() for name, p in free.items()}
        self._linear: TaylorModel | None = None

    def load(self, model: nn.Module) -> None:
        """Take the present parameters and buffers of `model`."""
        source = unwrapped(model)
        self._take({**dict(source.named_parameters()), **dict(source.named_buffers())})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the parameters and buffers of a state dict, with or without wrappers' prefixes."""
        self._take({_bare(name): value for name, value in state.items()})

    def outputs(self, x: Examples) -> Tensor:
        """(p, out) on the examples `x`."""
        return evaluate(self.network, x).detach()

    def linearized(self, x: Examples) -> Tensor:
        """(p, out): f(x; theta_0) + J(x; theta_0) (theta - theta_0), with the initial buffers."""
        linear = self._linear
        assert linear is not None, "begin() comes first"
        now = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, parameter in linear.named_parameters():
                parameter.copy_(now[name])
            args, kwargs = examples.arguments(x)
            returned: Tensor = linear(*args, **kwargs)
        return returned.reshape(examples.count(x), -1)

    def begin(self) -> None:
        """What has been loaded is where training begins."""
        self._linear = linearize(self.network)
        own = dict(self.network.named_parameters())
        self.start = {name: own[name].detach().clone() for name in self.start}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable ones as loaded last."""
        own = dict(self.network.named_parameters())
        return {name: own[name].detach() for name in self.start}

    @property
    def rounding(self) -> float:
        """Machine epsilon of the parameters."""
        return max(torch.finfo(value.dtype).eps for value in self.start.values())

    def is_finite(self) -> bool:
        """Whether no parameter or buffer has overflowed."""
        tensors = (*self.network.parameters(), *self.network.buffers())
        return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())

    def _take(self, values: Mapping[str, Tensor]) -> None:
        # Buffers that are not saved are missing in a state dict, and keep their values.
        needed = dict(self.network.named_parameters())
        own = {**needed, **dict(self.network.named_buffers())}
        for name, tensor in own.items():
            if name not in values and name in needed:
                raise InvalidInput(
                    f"there is no parameter {name!r} (there are {sorted(values)[:6]}...): the "
                    "monitor follows one architecture, that of the model it was made with."
                )
            if name not in values:
                continue
            if values[name].shape != tensor.shape:
                raise InvalidInput(
                    f"{name!r} has shape {tuple(values[name].shape)}, but {tuple(tensor.shape)} in "
                    "the model that the monitor was made with."
                )
            with torch.no_grad():
                tensor.copy_(values[name].detach())


def _bare(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name


def _copied(model: nn.Module) -> nn.Module:
    try:
        network = copy.deepcopy(model)
    except Exception as error:
        raise InvalidInput(
            f"{type(model).__name__} cannot be copied (copy.deepcopy: {error}), and the monitor "
            "measures a copy: make it before the first forward pass, or keep tensors that are "
            "computed in forward off the module."
        ) from error
    for module in network.modules():
        _without_hooks(module)
    for parameter in network.parameters():
        parameter.grad = None
    return network


def _without_hooks(module: nn.Module) -> None:
    for hooks in (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ):
        for key, hook in list(hooks.items()):
            if not getattr(hook, "__module__", "").startswith("torch."):
                del hooks[key]
