"""What a kernel is of, a module and a choice of its outputs and parameters, made ready for data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import losses
from tangency.empirical.costs import Layout
from tangency.empirical.engine import Engine
from tangency.empirical.function import (
    dictionaries,
    differentiable_copy,
    evaluate,
    named,
    refuse_training_effects,
    trainable,
    undisturbed,
    user_module,
)
from tangency.empirical.outputs import Choice, Output, Selected, WeightedSum, chosen
from tangency.empirical.preparation import Preparations
from tangency.empirical.probe import three
from tangency.empirical.recording import Recording
from tangency.empirical.schedule import Work
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["Prepared", "Subject", "checked"]


@dataclass(frozen=True)
class Prepared:
    """Data of one call, and the engine for them.

    Attributes:
        engine: of the function whose outputs are differentiated.
        x1: what that function is called on for the rows of the kernel.
        x2: the same for its columns; None for those of `x1`.
        choice: of outputs.
    """

    engine: Engine
    x1: Examples
    x2: Examples | None
    choice: Choice

    @property
    def layout(self) -> Layout:
        """Of the outputs in the kernel."""
        return self.choice.layout

    @cached_property
    def cotangents(self) -> Tensor:
        """The outputs that count as rows of an identity matrix, shape (k, out).

        Raises:
            InvalidInput: the module has no output of the index that was chosen.
        """
        engine, index = self.engine, self.choice.index
        device = examples.tensors(self.x1)[0].device
        identity = torch.eye(engine.out, dtype=engine.dtype, device=device)
        if index is None:
            return identity
        if not -engine.out <= index < engine.out:
            raise InvalidInput(
                f"output={index}, but {type(user_module(engine.model)).__name__} has "
                f"{engine.out} outputs."
            )
        return identity[index][None]

    @cached_property
    def work(self) -> Work:
        """What the kernel needs of every example."""
        return self.engine.work(len(self.cotangents), self.layout)


class Subject:
    """What a kernel is of.

    The engine differentiates a function that returns one tensor: the module itself, or with a
    tail behind it where an output or a loss is chosen. It is kept from call to call, as long as
    the module stays the same.

    Attributes:
        model: the user's module.
        choice: of its outputs.
        function: what is differentiated.
        preparations: the engine of the last call.
    """

    def __init__(
        self, model: nn.Module, output: Output, patterns: str | Sequence[str] | None
    ) -> None:
        """Raises InvalidInput where `output` is no choice, or a pattern matches no parameter."""
        named(model, patterns)
        self.model = model
        self.choice = chosen(output)
        self.function = self._selected if self.choice.loss is None else WeightedSum(self._selected)
        self.preparations = Preparations(Recording(self.function))
        self._patterns = patterns

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the NTK is summed over, by name, as they are now.

        Raises:
            InvalidInput: all are frozen.
        """
        return trainable(named(self.model, self._patterns))

    @contextmanager
    def prepared(
        self, x1: Examples, x2: Examples | None = None, *, gradients: bool
    ) -> Iterator[Prepared]:
        """Checked data and their engine, with autograd on and the random state put back after.

        Args:
            x1: the user's data.
            x2: further ones, or None.
            gradients: whether those of the parameters are wanted, or outputs alone.

        Raises:
            InvalidInput: data or a module of which there is no kernel.
        """
        x1 = checked(x1, "x1")
        x2 = None if x2 is None else checked(x2, "x2", like=x1)
        refuse_training_effects(self.model)
        parameters = self.parameters if gradients else {}
        with undisturbed(self.model, x1):
            first = differentiable_copy(x1)
            second = None if x2 is None else differentiable_copy(x2)
            if self.choice.loss is None:
                engine = self.preparations.get(self.function, parameters, first, second)
            else:
                # A recorded graph has no branches on data: then examples may go in batches.
                few = self._weighted(three(first, second), together=False)
                engine = self.preparations.get(self.function, parameters, few, None)
                together = engine.trace is not None
                first = self._weighted(first, together=together)
                second = None if second is None else self._weighted(second, together=together)
            yield Prepared(engine, first, second, self.choice)

    def outputs(self, x: Examples) -> Tensor:
        """The outputs that count of the one example `x`, shape (k,), with their graph."""
        loss, index = self.choice.loss, self.choice.index
        if loss is not None:
            inputs, targets = losses.split(x)
            return losses.value(self._selected, loss, inputs, targets)
        outputs = evaluate(self.function, x)[0]
        return outputs if index is None else outputs[index][None]

    @cached_property
    def _selected(self) -> nn.Module:
        """The module with what is chosen of that which it returns."""
        select = self.choice.select
        return self.model if select is None else Selected(self.model, select)

    def _weighted(self, data: Examples, *, together: bool) -> Examples:
        """What `function` is called on for pairs of inputs and targets."""
        assert self.choice.loss is not None
        inputs, targets = losses.split(data)
        loss = self.choice.loss
        return losses.weighted(self._selected, loss, inputs, targets, together=together)


def checked(x: Examples, name: str, like: Examples | None = None) -> Examples:
    """`x` with plain dictionaries in it, whose entries stand in the order of those of `like`.

    Raises:
        InvalidInput: no kernel can be computed of it; the message calls it `name`.
    """
    x = dictionaries(x)
    examples.check(x, name, like=like)
    if like is not None:
        x = examples.arrange(x, like)
        for leaf, other in zip(examples.tensors(x), examples.tensors(like), strict=True):
            if (leaf.dtype, leaf.device) != (other.dtype, other.device):
                raise InvalidInput(
                    f"{name} is {leaf.dtype} on {leaf.device}, but x1 {other.dtype} on "
                    f"{other.device}: convert it with x.to(x1)."
                )
    return x
