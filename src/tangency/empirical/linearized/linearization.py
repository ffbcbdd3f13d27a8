"""A module as its Taylor polynomial in the parameters: linearised, or of any degree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tangency.empirical.function import named, refuse_training_effects, trainable, unwrapped
from tangency.empirical.linearized.calls import Call
from tangency.empirical.linearized.directional import Expansion, expansion
from tangency.errors import InvalidInput

__all__ = ["TaylorModel", "linearize", "taylor"]

_INITIAL = "_initial"


def linearize(model: nn.Module, *, parameters: str | Sequence[str] | None = None) -> TaylorModel:
    """`model` linearised in its parameters: f(x; theta_0) + J(x) (theta - theta_0).

    J is the Jacobian at theta_0, the parameters that `model` has now (Lee et al., 2019, eq. 3):
    a module with the same parameters, theta, of which its outputs are an affine function, so that
    its NTK is that of `model` at theta_0 whatever theta is. See `TaylorModel` for what it shares
    with `model`, arguments and errors.
    """
    return TaylorModel(model, degree=1, parameters=parameters)


def taylor(
    model: nn.Module, degree: int = 2, *, parameters: str | Sequence[str] | None = None
) -> TaylorModel:
    """The Taylor polynomial of `model` in its parameters, about those that it has now.

    sum_k (1/k!) d^k/ds^k f(x; theta_0 + s (theta - theta_0)) at s = 0, for k up to `degree`
    (for degree 2 the quadratic model of Bai and Lee, 2020). The work doubles with each degree. See
    `TaylorModel` for the module, arguments and errors.
    """
    return TaylorModel(model, degree=degree, parameters=parameters)


class TaylorModel(nn.Module):
    """A Taylor polynomial of a module in its parameters, as a module to train.

    It is called like `model` and returns what `model` returns, tensor by tensor. Its parameters,
    theta, have the names that they have in `model` and begin at theta_0, where it equals `model`;
    theta_0 stands in buffers (`_initial.<name>`), as do the parameters of `model` that are frozen
    or that no pattern matches. `state_dict`, `to`, `deepcopy` and optimizers work as for any
    module. `model` itself is copied: training the one leaves the other as it is.

    The copy stays in the mode, training or evaluation, that `model` has now: `train()` and
    `eval()` change nothing. Buffers that `model` would update in its forward pass stay as they are.

    Derivatives are taken in forward mode. At the first call they are held against plain autograd
    on that call's arguments; where they differ (`torch.no_grad` in `forward`, a custom backward
    pass) or do not exist, the linearised module goes through autograd itself, which needs no
    further derivative of any operation, and takes first derivatives of its outputs only. Make that
    first call outside of `torch.func` transformations.

    Args:
        model: a module that returns a tensor, or tensors in tuples, lists or dictionaries.
        degree: of the polynomial, at least 1.
        parameters: name patterns (`fnmatch`, one or several) of the parameters to expand in; None
            for all. Frozen parameters (requires_grad=False) stay frozen.

    Raises:
        InvalidInput: `model` is no module, cannot be copied, has no such parameter or none that is
            trainable, couples examples or is random in its present mode, or the degree is not a
            positive integer.
        UnsupportedOperation: at the first call, an operation without the derivatives that a degree
            above 1 needs.
    """

    _network: nn.Module

    def __init__(
        self,
        model: nn.Module,
        *,
        degree: int = 1,
        parameters: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        model = unwrapped(model)
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
            raise InvalidInput(f"degree={degree!r}: give a positive integer (1 is linear).")
        refuse_training_effects(model)
        free = trainable(named(model, parameters))
        self._degree = degree
        self._expansion: Expansion | None = None
        # Not a submodule: its parameters are neither trained nor saved.
        object.__setattr__(self, "_network", _copied(model))
        for name, parameter in model.named_parameters():
            value = parameter.detach().clone()
            if name in free:
                _place(self, name, nn.Parameter(value))
                _place(self, f"{_INITIAL}.{name}", value.clone())
            else:
                _place(self, name, value)
        for name, buffer in model.named_buffers():
            _place(self, name, buffer.detach().clone(), persistent=_is_saved(model, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `model` is called; returns what `model` returns."""
        call = self._call(args, kwargs)
        if self._expansion is None:
            self._expansion = expansion(call, self._degree)
        return self._expansion(call, self._degree).whole()

    def __repr__(self) -> str:
        count = sum(1 for _ in self.parameters())
        kind = type(self._network).__name__
        return f"TaylorModel({kind}, degree={self._degree}, {count} trainable tensors)"

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        theta, values = dict(self.named_parameters()), dict(self.named_buffers())
        initial = {name: values.pop(f"{_INITIAL}.{name}") for name in theta}
        buffers = {name: values.pop(name) for name, _ in self._network.named_buffers()}
        return Call(
            network=self._network,
            initial=initial,
            displacement={name: theta[name] - value for name, value in initial.items()},
            frozen=values,
            buffers=buffers,
            args=args,
            kwargs=kwargs,
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        network = copy.deepcopy(model)
    except Exception as error:
        raise InvalidInput(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): a tensor "
            "that autograd computed is kept in it, or something that copy.deepcopy does not know."
        ) from error
    for parameter in network.parameters():
        parameter.grad = None
    return network


def _place(root: nn.Module, name: str, value: Tensor, *, persistent: bool = True) -> None:
    """Register `value` under a qualified name, as a buffer where it is no parameter."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value, persistent=persistent)


def _is_saved(model: nn.Module, buffer: str) -> bool:
    path, _, leaf = buffer.rpartition(".")
    return leaf not in model.get_submodule(path)._non_persistent_buffers_set
