"""The networks that are studied: multilayer perceptrons, or a user's own."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tangency.errors import InvalidInput
from tangency.infinite import Init

__all__ = ["ACTIVATIONS", "Family", "imported", "perceptrons"]

READOUT = 0.1
"""Second moment (times fan-in) of the last layer's weights in the default family. Drawn at full
size, the random function that training begins with is several times larger than the targets, and
most of training is spent on forgetting it."""

READOUT_NOTE = (
    f"The weights of the last layer are drawn small, with variance {READOUT} / inputs, so that "
    "training does not begin with a large random function. This helps the network to be lazy: "
    "drawn at full size, the same network changes its kernel more and is predicted less well."
)


class Erf(nn.Module):
    """The error function, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.erf(x)


class Sine(nn.Module):
    """The sine, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.sin(x)


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, 2.0),
    "gelu": (nn.GELU, 2.0),
    "silu": (nn.SiLU, 2.0),
    "tanh": (nn.Tanh, 1.0),
    "erf": (Erf, 1.0),
    "sin": (Sine, 1.0),
}
"""Activations of the default family, with the weight scale w2 of the layer before: He et al.
(2015) for those that are near zero on one side, LeCun et al. (1998) for the others."""


@dataclass(frozen=True, eq=False)
class Family:
    """Networks that differ in width and in their random start.

    Attributes:
        name: what to call them.
        width: of the network that is studied; None if the family has no width.
        build: makes a network of a width from the current random state.
        init: scales of the parameters; "module" if they have to be measured on a network.
        note: what a reader of results should know of the way the networks are drawn.
    """

    name: str
    width: int | None
    build: Callable[[int | None], nn.Module]
    init: Init | str
    note: str = ""

    def network(self, seed: int, width: int | None = None) -> nn.Module:
        """A network of the given width (by default that of the family) in evaluation mode.

        The global random state is as before.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(self.width if width is None else width).eval()

    def network_for(self, x: Tensor, out: int, seed: int) -> nn.Module:
        """`network(seed)`, tried on two examples of `x`, (n, features).

        Raises:
            InvalidInput: it does not run, or does not return (n, out).
        """
        model = self.network(seed)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                found = model(x[:2])
        except Exception as error:
            raise InvalidInput(
                f"{self.name}: the network does not run on inputs (n, {x.shape[1]}): {error}."
            ) from error
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (len(x[:2]), out):
            raise InvalidInput(
                f"{self.name}: of {len(x[:2])} examples the network makes {shape}, but the data "
                f"need ({len(x[:2])}, {out})."
            )
        return model


def perceptrons(
    features: int, out: int, *, width: int = 512, depth: int = 2, activation: str = "relu"
) -> Family:
    """Multilayer perceptrons: `depth` hidden layers of `width` units, biases zero at first.

    Raises:
        InvalidInput: an unknown activation, or no width or depth.
    """
    if activation not in ACTIVATIONS:
        raise InvalidInput(f"unknown activation '{activation}': choose {', '.join(ACTIVATIONS)}.")
    if width < 1 or depth < 1:
        raise InvalidInput(f"width is {width} and depth {depth}; both must be at least 1.")
    make, scale = ACTIVATIONS[activation]

    def build(units: int | None) -> nn.Module:
        layers: list[nn.Module] = []
        fan_in = features
        for _ in range(depth):
            layers += [_linear(fan_in, units or width, scale), make()]
            fan_in = units or width
        return nn.Sequential(*layers, _linear(fan_in, out, READOUT))

    noun = "hidden layer" if depth == 1 else "hidden layers"
    name = f"multilayer perceptron, {depth} {noun} of {width} {activation} units"
    init = Init(weight=scale, overrides={f"{2 * depth}.weight": READOUT})
    return Family(name, width, build, init, READOUT_NOTE)


def _linear(fan_in: int, fan_out: int, scale: float) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=math.sqrt(scale / fan_in))
    nn.init.zeros_(layer.bias)
    return layer


def imported(path: str, features: int, out: int, *, width: int | None = None) -> Family:
    """The family made by a function of the user's: MODULE:FACTORY.

    FACTORY(in_features, out_features), or FACTORY(in_features, out_features, width), returns an
    `nn.Module` that takes (n, in_features) to (n, out_features).

    Raises:
        InvalidInput: a path that is not MODULE:FACTORY, that cannot be imported or called so, a
            width for a factory that takes none, or a result that is not a module.
    """
    factory = _factory(path)
    takes_width = _takes_width(path, factory)
    if width is not None and not takes_width:
        raise InvalidInput(f"{path} takes no width: leave --width out, or let it take a third one.")

    def build(units: int | None) -> nn.Module:
        arguments = (features, out) if units is None else (features, out, units)
        model = factory(*arguments)
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"{path} returned {type(model).__name__}, not a torch.nn.Module.")
        return model

    return Family(path, (width or 512) if takes_width else None, build, "module")


def _factory(path: str) -> Callable[..., Any]:
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise InvalidInput(f"'{path}' is not MODULE:FACTORY, as in mypackage.models:make_network.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidInput(f"cannot import '{module_name}': {error}.") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise InvalidInput(f"the module '{module_name}' has no function '{name}'.")
    return factory  # type: ignore[no-any-return]


def _takes_width(path: str, factory: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return False
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count == 3
    raise InvalidInput(
        f"{path}{signature} cannot be called with (in_features, out_features) "
        "or (in_features, out_features, width)."
    )
