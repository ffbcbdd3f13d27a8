"""Networks of the finite-width benchmark in plain JAX, with the parameters of our modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from finite.cases import Network

__all__ = ["FUNCTIONS", "Values", "split"]

Values = Mapping[str, Any]
Function = Callable[[Values, Values, Any], Any]
"""f(parameters, buffers, x) -> (n, out)."""

WIDTHS = (64, 64, 128, 128, 256, 256, 512, 512)
EPSILON = 1e-5


def split(saved: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> tuple[Values, Values, Any]:
    """Parameters, buffers and inputs in JAX's order of dimensions: channels last, weights (height,
    width, in, out) and (in, out).
    """
    orders = {4: (2, 3, 1, 0), 2: (1, 0)}
    arranged = {
        name: np.ascontiguousarray(value.transpose(orders[value.ndim]))
        if value.ndim in orders
        else value
        for name, value in saved.items()
    }
    buffers = {name: v for name, v in arranged.items() if "running_" in name}
    parameters = {name: v for name, v in arranged.items() if name not in buffers}
    data = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim == 4 else x
    return parameters, buffers, data


def resnet18(parameters: Values, buffers: Values, x: Any) -> Any:
    """ResNet-18 for CIFAR in evaluation mode."""

    def convolution(x: Any, name: str, stride: int) -> Any:
        weight = parameters[f"{name}.weight"]
        border = weight.shape[0] // 2
        return lax.conv_general_dilated(
            x,
            weight,
            (stride, stride),
            [(border, border)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def norm(x: Any, name: str) -> Any:
        scale = 1 / jnp.sqrt(buffers[f"{name}.running_var"] + EPSILON)
        whitened = (x - buffers[f"{name}.running_mean"]) * scale
        return whitened * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]

    h = jax.nn.relu(norm(convolution(x, "stem", 1), "stem_norm"))
    before = 64
    for i, width in enumerate(WIDTHS):
        name, stride = f"blocks.{i}", 1 if before == width else 2
        inner = jax.nn.relu(norm(convolution(h, f"{name}.first", stride), f"{name}.first_norm"))
        inner = norm(convolution(inner, f"{name}.second", 1), f"{name}.second_norm")
        if before != width:
            shortcut = f"{name}.shortcut"
            h = norm(convolution(h, f"{shortcut}.0", stride), f"{shortcut}.1")
        h = jax.nn.relu(inner + h)
        before = width
    return h.mean((1, 2)) @ parameters["head.weight"] + parameters["head.bias"]


def mlp(parameters: Values, buffers: Values, x: Any) -> Any:
    """A fully connected ReLU network."""
    layers = sorted({int(name.split(".")[0]) for name in parameters})
    for i in layers:
        x = x if i == 0 else jax.nn.relu(x)
        x = x @ parameters[f"{i}.weight"] + parameters[f"{i}.bias"]
    return x


FUNCTIONS: dict[Network, Function] = {"resnet18": resnet18, "mlp_2048": mlp}
"""By name."""
