"""What the kernel is of: all outputs, one of them, a function of what is returned, a loss.

The engine differentiates a module that returns one tensor. A choice among what the user's module
returns, and a loss of it, become such a module: a tail behind the user's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical.costs import Layout
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.program.outputs import listed

__all__ = [
    "Choice",
    "Loss",
    "Output",
    "Select",
    "Selected",
    "Tail",
    "WeightedSum",
    "chosen",
    "described",
]

Select: TypeAlias = Callable[[Any], Tensor]
"""What the module returns -> the tensor (n, *rest) whose kernel it is."""

Loss: TypeAlias = Callable[[Tensor, Any], Tensor]
"""Outputs and targets of one example, with their leading size of one -> a scalar."""

How: TypeAlias = Literal["full", "trace", "diagonal"] | int | Loss
Output: TypeAlias = How | Select | tuple[Select, How]
"""The argument `output` of `EmpiricalKernel`."""

_LAYOUTS = ("full", "trace", "diagonal")


@dataclass(frozen=True)
class Choice:
    """`output`, read.

    Attributes:
        select: function of what the module returns; None where that is the tensor itself.
        layout: of the outputs; "trace" for one output and for a loss, which is the mean over one.
        index: the one output that counts; None for all.
        loss: function of outputs and targets; None for the outputs themselves.
    """

    select: Select | None = None
    layout: Layout = "trace"
    index: int | None = None
    loss: Loss | None = None


def chosen(output: Any) -> Choice:
    """Read `output`.

    Raises:
        InvalidInput: it is none of what it can be.
    """
    if _is_select(output):
        return Choice(_checked(output))
    select, how = None, output
    if isinstance(output, tuple) and len(output) == 2 and _is_select(output[0]):
        select, how = _checked(output[0]), output[1]
    if isinstance(how, str) and how in _LAYOUTS:
        return Choice(select, layout=cast(Layout, how))
    if isinstance(how, int) and not isinstance(how, bool):
        return Choice(select, index=how)
    if callable(how) and _arguments(how) == 2:
        return Choice(select, loss=how)
    raise _refused(output)


def described(output: Any) -> str:
    """`output` as it was probably written; functions by their names."""
    if isinstance(output, tuple):
        return f"({', '.join(map(described, output))})"
    if callable(output) and not isinstance(output, nn.Module):
        return str(getattr(output, "__name__", output))
    return repr(output)


def _refused(output: object) -> InvalidInput:
    return InvalidInput(
        f"output={described(output)}: choose 'full', 'trace', 'diagonal', the index of an output; "
        "a function of what the module returns (lambda out: out.logits[:, -1]); a loss, a function "
        "of outputs and targets (F.cross_entropy); or a pair of the second and one of the others "
        "(lambda out: out.logits, 'full')."
    )


def _is_select(output: object) -> bool:
    return callable(output) and _arguments(output) < 2


def _arguments(function: Callable[..., object]) -> int:
    """Number of positional arguments that `function` requires; 1 where it does not say."""
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # built-in functions
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _checked(select: Select) -> Select:
    if isinstance(select, nn.Module) and any(True for _ in select.parameters()):
        raise InvalidInput(
            f"output={type(select).__name__}(...) has parameters of its own, which would have no "
            "part in the kernel: make it a part of the model, e.g. nn.Sequential(model, head)."
        )
    return select


class Tail(nn.Module):
    """The user's module with something behind it, under the names of the user's module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the user's module."""
        yield from self.model.named_parameters(prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Those of the user's module."""
        yield from self.model.named_buffers(prefix, recurse, remove_duplicate)

    def data(self, x: Examples) -> Examples:
        """What of the batch `x` the user's module is called on."""
        raise NotImplementedError

    def finish(self, returned: Any, x: Examples) -> Tensor:
        """The output of the batch `x`, for which the user's module `returned` this."""
        raise NotImplementedError


class Selected(Tail):
    """A function of what the module returns."""

    def __init__(self, model: nn.Module, select: Select) -> None:
        super().__init__(model)
        self.select = select

    def data(self, x: Examples) -> Examples:
        """All of it."""
        return x

    def finish(self, returned: Any, x: Examples) -> Tensor:
        """What the function gives.

        Raises:
            InvalidInput: it is not made for what the module returned; the message lists that.
        """
        try:
            return self.select(returned)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"the function output= does not fit what {type(self.model).__name__} returns: "
                f"{type(error).__name__}: {error}. {listed(returned)}choose from that."
            ) from error

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """As the user's module is called."""
        return self.select(self.model(*args, **kwargs))


class WeightedSum(Tail):
    """g(x_i, c_i, s_i) = c_i . f(x_i) + s_i, on data (x, c, s), in float32 at least.

    With c_i the gradient of a loss in the outputs f(x_i), and s_i such that g is that loss, the
    gradient of g in the parameters is the gradient of the loss, by the chain rule.
    """

    def data(self, x: Examples) -> Examples:
        """x alone."""
        return cast("tuple[Examples, Tensor, Tensor]", x)[0]

    def finish(self, returned: Any, x: Examples) -> Tensor:
        """The weighted sums, shape (n, 1)."""
        _, weights, shift = cast("tuple[Examples, Tensor, Tensor]", x)
        dtype = torch.promote_types(weights.dtype, torch.float32)
        products = returned.reshape(weights.shape).to(dtype) * weights.to(dtype)
        sums: Tensor = products.sum(dim=1, keepdim=True) + shift
        return sums

    def forward(self, x: Examples, weights: Tensor, shift: Tensor) -> Tensor:
        """On x (n examples), weights (n, out) and shift (n, 1)."""
        args, kwargs = examples.arguments(x)
        return self.finish(self.model(*args, **kwargs), (x, weights, shift))
