"""Products with the Jacobian of a module in its parameters, and with its transpose.

For J of shape (n, out, parameters) over n examples: J^T u by reverse mode, J v by forward mode or,
where an operation has none or the module is not what its operations say (`torch.no_grad` inside
`forward`, a custom backward pass, a parameter reached by another reference), by differentiating
J^T u in u; and where that is impossible too, by the gradients of one example at a time. All are
exact; which one serves is decided on three examples, held against plain autograd.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import probe
from tangency.empirical.entries import as_parameter, as_real, real_shape
from tangency.empirical.function import detached, evaluate
from tangency.empirical.jacobian import by_autograd
from tangency.empirical.matrix_free.attention import elementary_attention
from tangency.empirical.probe import Probe
from tangency.examples import Examples

__all__ = ["JacobianProducts", "ParameterVectors", "agree", "prepare", "trial_vectors"]

ParameterVectors: TypeAlias = "dict[str, Tensor]"
"""m vectors in the space of parameters: name -> (m, *shape of the parameter), in real numbers."""

_Parameters: TypeAlias = Mapping[str, nn.Parameter]
_Push: TypeAlias = Callable[[nn.Module, _Parameters, Examples, ParameterVectors], Tensor]


@dataclass(frozen=True)
class JacobianProducts:
    """Products with the Jacobian J, (n, out, parameters), of `model` over batches of examples.

    Attributes:
        model: the module, which stays as it is.
        parameters: those that J differentiates by.
        path: how J v is computed, in words.
        alone: whether examples go through the module one at a time.
        out: number of the module's outputs.
        dtype: of the module's outputs.
        value_bytes: bytes that the module keeps for a backward pass through one example.
        memory: bytes that a product may take.
    """

    model: nn.Module
    parameters: _Parameters
    path: str
    alone: bool
    out: int
    dtype: torch.dtype
    value_bytes: int
    memory: int

    @property
    def vectors_at_once(self) -> int:
        """How many vectors of the size of the parameters the memory budget allows."""
        size = sum(p.numel() * max(p.element_size(), 4) for p in self.parameters.values())
        # What is accumulated, what a tile adds to it, and the copy in hand.
        return max(1, self.memory // (6 * max(size, 1)))

    def transposed(self, x: Examples, cotangents: Tensor) -> ParameterVectors:
        """J^T u for m vectors u: `cotangents` (m, n, out). Sums are taken in float32 at least."""
        total = {
            name: as_real(p).new_zeros(
                (len(cotangents), *real_shape(p)), dtype=_accumulated(as_real(p).dtype)
            )
            for name, p in self.parameters.items()
        }
        for rows in self._tiles(x, 1):
            batch, pulled = examples.take(x, rows), cotangents[:, rows].to(self.dtype)
            for vectors, tile in zip(
                total.values(), _pull(self.model, self.parameters, batch, pulled), strict=True
            ):
                vectors += tile
        return total

    def forward(self, x: Examples, vectors: ParameterVectors) -> Tensor:
        """J v for m vectors v: (m, n, out), in float32 at least."""
        push = _PATHS[self.path]
        tangents = {name: as_parameter(v, self.parameters[name]) for name, v in vectors.items()}
        m = len(next(iter(tangents.values())))
        tiles = [
            push(self.model, self.parameters, examples.take(x, rows), tangents)
            for rows in self._tiles(x, m)
        ]
        return torch.cat([tile.to(_accumulated(tile.dtype)) for tile in tiles], dim=1)

    def _tiles(self, x: Examples, m: int) -> list[slice]:
        n = examples.count(x)
        fitting = self.memory // (4 * max(1, self.value_bytes * (m + 1)))
        size = 1 if self.alone else max(1, min(_LARGEST_TILE, fitting))
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _pull(
    model: nn.Module, parameters: _Parameters, x: Examples, cotangents: Tensor
) -> list[Tensor]:
    """J^T u by one pass forward and m backward, in the module's own parameters."""
    outputs = evaluate(model, x)
    if not outputs.requires_grad:
        zeros = [torch.zeros_like(as_real(p)) for p in parameters.values()]
        return [zero.expand(len(cotangents), *zero.shape) for zero in zeros]
    pulled = [
        torch.autograd.grad(
            outputs,
            list(parameters.values()),
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for cotangent in cotangents
    ]
    together = zip(*pulled, strict=True)
    return [torch.stack([as_real(g.detach()) for g in of_one]) for of_one in together]


def _forward_mode(
    model: nn.Module, parameters: _Parameters, x: Examples, tangents: ParameterVectors
) -> Tensor:
    values = detached(parameters)

    def along(tangent: dict[str, Tensor]) -> Tensor:
        results = torch.func.jvp(lambda free: evaluate(model, x, free), (values,), (tangent,))
        product: Tensor = results[1]
        return product

    with torch.no_grad(), warnings.catch_warnings():
        # Slow rules give exact results, and the user can do nothing about them.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(along)(tangents)


def _twice_reverse_mode(
    model: nn.Module, parameters: _Parameters, x: Examples, tangents: ParameterVectors
) -> Tensor:
    """J v as the derivative of (J^T u) . v, which is linear in u."""
    outputs = evaluate(model, x)
    u = torch.zeros_like(outputs, requires_grad=True)
    m = len(next(iter(tangents.values())))
    if not outputs.requires_grad:
        return outputs.new_zeros(m, *outputs.shape)
    pulled = torch.autograd.grad(
        outputs, list(parameters.values()), u, create_graph=True, allow_unused=True
    )
    reached = [
        (gradient, tangents[name])
        for name, gradient in zip(parameters, pulled, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not reached:
        return outputs.new_zeros(m, *outputs.shape)
    gradients = [gradient for gradient, _ in reached]
    products = [
        torch.autograd.grad(gradients, u, [v[i] for _, v in reached], retain_graph=True)[0]
        for i in range(m)
    ]
    return torch.stack(products).detach()


def _by_gradients(
    model: nn.Module, parameters: _Parameters, x: Examples, tangents: ParameterVectors
) -> Tensor:
    """J v from J itself, one example and one output at a time."""
    products = []
    for i in range(examples.count(x)):
        single = examples.take(x, slice(i, i + 1))
        outputs = evaluate(model, single).detach()
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        _, jacobian = by_autograd(model, parameters, single, identity)
        parts = [
            as_real(tangents[name]).flatten(1).to(_accumulated(rows.dtype))
            @ rows[0].to(_accumulated(rows.dtype)).mT
            for name, rows in jacobian.items()
        ]
        products.append(torch.stack(parts).sum(dim=0))
    return torch.stack(products, dim=1)


def _within(context: Callable[[], AbstractContextManager[None]], push: _Push) -> _Push:
    def pushed(
        model: nn.Module, parameters: _Parameters, x: Examples, tangents: ParameterVectors
    ) -> Tensor:
        with context():
            return push(model, parameters, x, tangents)

    return pushed


_LAST = "gradients"

_TRIALS = 3

_LARGEST_TILE = 512
"""Examples that go through the module at a time, at most."""

_PATHS: dict[str, _Push] = {
    f"{path}{suffix}": _within(context, push)
    for path, push in (
        ("forward mode", _forward_mode),
        ("reverse mode twice", _twice_reverse_mode),
    )
    for suffix, context in (("", nullcontext), (", elementary attention", elementary_attention))
} | {_LAST: _by_gradients}
"""The fastest first; the last one serves every module."""


def prepare(
    model: nn.Module,
    parameters: _Parameters,
    x1: Examples,
    x2: Examples | None,
    *,
    alone: bool,
    rounding: torch.dtype,
    memory: int,
) -> JacobianProducts:
    """Decide how the products are computed, and confirm it on three examples of the data.

    With `alone`, or where the three together have other outputs than each alone (a module that
    branches on its data), examples go through the module one at a time. `rounding` is the coarsest
    dtype that the module's values pass through.

    Raises:
        InvalidInput: the module cannot be run on the data, or is random.
    """
    found: list[JacobianProducts] = []
    for first, second in _excerpts(x1, x2):
        tried = replace(probe.make(model, parameters, first, second), dtype=rounding)
        products = _on_three(model, parameters, tried, alone, memory)
        if products.alone <= alone and products.path != _LAST:
            return products
        found.append(products)
    return min(found, key=lambda p: (p.alone, p.path == _LAST))


def _excerpts(x1: Examples, x2: Examples | None) -> list[tuple[Examples, Examples | None]]:
    """Data whose first, middle and last examples differ, where there are enough.

    Rounding may switch a ReLU in an example, which then speaks against a way that is right.
    """
    n = min(examples.count(x) for x in (x1, x2) if x is not None)

    def shortened(x: Examples, by: int) -> Examples:
        return examples.take(x, slice(by, examples.count(x) - by))

    return [
        (shortened(x1, by), None if x2 is None else shortened(x2, by))
        for by in range(_TRIALS)
        if by == 0 or n > 2 * by
    ]


def _on_three(
    model: nn.Module, parameters: _Parameters, tried: Probe, alone: bool, memory: int
) -> JacobianProducts:
    together = not alone and tried.batch is not None and tried.confirms_outputs(tried.batch)
    gradients = _pulled(model, parameters, tried.x, tried) if together else {}
    together = together and _confirms(tried, gradients)
    if not together:
        singles = [examples.take(tried.x, slice(i, i + 1)) for i in range(len(tried.outputs))]
        pulled = [_pulled(model, parameters, single, tried) for single in singles]
        gradients = {name: torch.cat([each[name] for each in pulled]) for name in parameters}
    trial = JacobianProducts(
        model,
        parameters,
        path=_LAST,
        alone=not together,
        out=tried.outputs.shape[1],
        dtype=tried.outputs.dtype,
        value_bytes=_value_bytes(model, tried.x, together),
        memory=memory,
    )
    vectors, expected = trial_vectors(gradients)
    paths = (replace(trial, path=path) for path in _PATHS)
    return next(p for p in paths if p.path == _LAST or _serves(p, tried, vectors, expected))


def _pulled(
    model: nn.Module, parameters: _Parameters, x: Examples, tried: Probe
) -> ParameterVectors:
    """The gradients of w . f(x_i), (n, *shape), from one pass through all examples `x`."""
    n = examples.count(x)
    w = tried.cotangents[0]
    cotangents = torch.eye(n, dtype=w.dtype, device=w.device)[..., None] * w
    return dict(zip(parameters, _pull(model, parameters, x, cotangents), strict=True))


def _confirms(tried: Probe, gradients: ParameterVectors) -> bool:
    """Whether the gradients of the three examples are those of the module alone."""
    return all(tried.confirms(name, g.reshape(len(g), 1, -1)) for name, g in gradients.items())


def trial_vectors(gradients: ParameterVectors) -> tuple[ParameterVectors, Tensor]:
    """Two vectors v in which every parameter counts alike, however small its gradients g are.

    `gradients` are those of n functions, (n, *shape). With the vectors come the products v . g,
    shape (2, n), in float64.
    """
    n, device = next((len(g), g.device) for g in gradients.values())
    whole = sum(float(g.double().square().sum()) for g in gradients.values()) ** 0.5 or 1.0
    vectors: ParameterVectors = {}
    products = torch.zeros(2, n, dtype=torch.float64, device=device)
    for name, gradient in gradients.items():
        flat = gradient.double().reshape(n, -1) / whole
        # The gradient of a parameter without influence is rounding, and counts as such.
        size = max(float(flat.norm()), torch.finfo(gradient.dtype).eps ** 0.5)
        wave = torch.arange(flat.shape[1], device=flat.device).double().add(0.5).sin()
        both = torch.stack([flat.sum(dim=0) / size, wave / wave.norm()]) / size
        vector = both.to(gradient.dtype)
        products += (vector.double() @ flat.mT * whole).to(device)
        vectors[name] = vector.view(2, *gradient.shape[1:])
    return vectors, products


def agree(value: Tensor, expected: Tensor, dtype: torch.dtype, floor: float = 0.0) -> bool:
    """Whether what was computed in `dtype` is right but for rounding: wrong paths are far off.

    `floor` is the scale whose rounding counts too (a gradient that is zero but for rounding).
    """
    epsilon = torch.finfo(dtype).eps
    allowed: float = 2 * epsilon**0.5 * float(expected.norm()) + 64 * epsilon * floor
    return float((value.double() - expected).norm()) <= allowed


def _serves(
    trial: JacobianProducts, tried: Probe, vectors: ParameterVectors, expected: Tensor
) -> bool:
    """Whether a path runs on the three examples, and gives what the gradients say."""
    try:
        products = trial.forward(tried.x, vectors)
    except Exception:
        # Whatever goes wrong is the path's: the module has been seen to run and differentiate.
        return False
    return agree(products.double() @ tried.cotangents[0].double(), expected, tried.dtype)


def _value_bytes(model: nn.Module, x: Examples, together: bool) -> int:
    """Bytes that `model` keeps for a backward pass through one example."""
    batch = x if together else examples.take(x, slice(0, 1))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        outputs = evaluate(model, batch)
    return (sum(kept.values()) + outputs.nbytes) // examples.count(batch)
