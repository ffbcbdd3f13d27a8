"""`trainability`: can this architecture be trained from its initialisation, and if not, why?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tangency import drawing, examples
from tangency.diagnosis.trainability.conditioning import condition_number
from tangency.diagnosis.trainability.initialisations import (
    FOLLOWED,
    Initialisation,
    Initialisations,
    compared,
    judged,
)
from tangency.diagnosis.trainability.layers import LayerLimits, LayerSignals, layer_signals
from tangency.diagnosis.trainability.maps import check_closed
from tangency.diagnosis.trainability.mean_field import maps_of
from tangency.diagnosis.trainability.propagation import Propagation, measured_states
from tangency.diagnosis.trainability.verdict import (
    DepthLimits,
    Judgement,
    State,
    judge_layers,
)
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput, TangencyError, UnsupportedOperation
from tangency.examples import Examples
from tangency.infinite import InfiniteKernel, Init

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Trainability", "trainability"]

MEASURED = 32
"""Examples on which layers are measured: the first ones, if there are more."""

BATCHES = (
    "the repeated block holds batch normalisation. The limit reads it in evaluation mode, where "
    "its running statistics make it the identity at initialisation; training normalises by the "
    "batch, which keeps lengths and lets gradients grow with depth (Yang et al. 2019). "
    "tangency.mean_field_theory gives the theory of evaluation mode."
)
"""Why theory says nothing about a block."""

CAUSES: tuple[State, ...] = ("dead units", "saturating")
"""Verdicts on layers that explain those of theory."""

SEEN_OUTSIDE: tuple[State, ...] = (
    "vanishing gradients",
    "exploding gradients",
    "signal explodes",
)
"""Verdicts on layers that count where theory finds nothing against a block."""

ILL_CONDITIONED = 1e8
"""A condition number of the NTK that is worth a word."""


@dataclass(frozen=True, eq=False, repr=False)
class Trainability:
    """Whether a network can be trained from its initialisation, and what that rests on.

    Attributes:
        judgement: the verdict, its reason and its numbers.
        method: "mean field" where the module repeats a block whose limit is known; "layers" where
            it was measured layer by layer.
        method_reason: why mean-field theory was not used; None where it was.
        own: the repeated block at the module's own moments (or those of `init`), or None.
        standard: what other initialisations would do, or None.
        measured: lengths, correlations and gains of the blocks of the module as it stands, to be
            held against `own.through`; None without a repeated block.
        layers: signal and gradients layer by layer, of the module as it stands.
        condition: condition number of the NTK over a few examples; NaN without one.
        condition_of: the kernel it is of: "infinite", "empirical" or "none".
        advice: what to do, in plain sentences.
        notes: what the verdict leaves out.
    """

    judgement: Judgement
    method: Literal["mean field", "layers"]
    method_reason: str | None
    own: Initialisation | None
    standard: Initialisations | None
    measured: Propagation | None
    layers: LayerSignals
    condition: float
    condition_of: Literal["infinite", "empirical", "none"]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> State:
        """The verdict in a word: "trainable", "ordered", "chaotic", "vanishing gradients", ..."""
        return self.judgement.state

    @property
    def trainable(self) -> bool:
        """Whether nothing stands against training."""
        return self.judgement.trainable

    def explain(self) -> str:
        """The verdict, what it rests on and what to do, in plain sentences, one a line."""
        lines = [f"{self.verdict[0].upper()}{self.verdict[1:]}: {self.judgement.reason}."]
        if self.own is not None:
            t = self.own.theory
            lines.append(
                f"Mean-field theory of {t.block.depth} equal blocks: {t.phase}, "
                f"chi_1 = {t.chi_1:.4g}, so that squared gradients change by e in "
                f"{t.xi_gradient:.3g} blocks, and correlations settle in {t.xi_c:.3g}."
            )
        else:
            lines.append(f"Measured layer by layer: {self.method_reason}")
        if self.condition_of != "none":
            lines.append(f"The {self.condition_of} NTK has condition number {self.condition:.3g}.")
        return "\n".join([*lines, *self.advice, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and words, series as tensors."""
        return {
            "verdict": self.verdict,
            "judgement": self.judgement.to_dict(),
            "method": self.method,
            "method_reason": self.method_reason,
            "mean_field": None if self.own is None else self.own.theory.to_dict(),
            "predicted": None if self.own is None else vars(self.own.through),
            "measured": None if self.measured is None else vars(self.measured),
            "standard": None if self.standard is None else self.standard.to_dict(),
            "layers": self.layers.to_dict(),
            "condition": self.condition,
            "condition_of": self.condition_of,
            "advice": self.advice,
            "notes": self.notes,
        }

    def __repr__(self) -> str:
        lines = [f"Trainability({self.verdict}, by {self.method})"]
        lines += [f"  {line}" for line in self.explain().splitlines()]
        if self.standard is not None:
            lines += [f"  {line}" for line in repr(self.standard).splitlines()[1:]]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Lengths, correlations and gradients through the blocks, predicted and measured.

        Without a repeated block, the measured layers.
        """
        if self.own is None or self.measured is None:
            return self.layers.figure()
        title = f"{self.verdict[0].upper()}{self.verdict[1:]}"
        names = ["squared length", "mean cosine of the inputs", "squared gradient, last block = 1"]
        figure = drawing.panels(title, names, columns=3)
        rows = (("limit", self.own.through, drawing.INFINITE), ("this module", self.measured, None))
        for name, found, colour in rows:
            series = (found.lengths, found.correlations, _pulled_back(found))
            depths = torch.arange(len(found.lengths))
            for k, y in enumerate(series):
                place: dict[str, Any] = {"row": 1, "col": k + 1, "legend": k == 0}
                draw = drawing.line if colour else drawing.points
                draw(figure, depths, y, name, colour or drawing.EMPIRICAL, **place)
        figure.update_xaxes(title_text="block")
        for k in (1, 3):
            figure.update_yaxes(type="log", exponentformat="power", row=1, col=k)
        return figure


def trainability(
    model: nn.Module,
    example: Examples,
    targets: Tensor | None = None,
    *,
    init: Init | str = "module",
    block: nn.Module | None = None,
    depth: int | None = None,
    standard: bool = True,
    limits: DepthLimits | None = None,
    layer_limits: LayerLimits | None = None,
) -> Trainability:
    """Whether `model` can be trained from its initialisation: a verdict with advice.

    Where the module repeats a block (found in what it computes), mean-field theory through its
    infinite-width kernel gives the phase, the depth scales of signal and gradient, and what both do
    through the actual number of blocks (Schoenholz et al. 2017). Else, and beside it, every layer
    is measured on the examples: signal, gradient, flat and dead units. Where the module's own
    initialisation is judged, layers that are dead or saturated are named as the cause.

    Nothing is trained, and the module stays as it is. Call it on a fresh module: the verdict is
    about random weights, and trained ones draw a `NotIidWarning`.

    Args:
        model: a module that returns one tensor with one row per example.
        example: examples; the first 32 are used.
        targets: for the gradients of layers, see `layer_signals`.
        init: the initialisation that theory judges, "module" for the module's own; layers are
            measured on the module as it stands in any case.
        block: the repeated block, a module from a state to one of the same shape, where it is not
            to be found in `model`; its states start at length 1 and correlation 1/2.
        depth: number of blocks; by default as many as the module has (1 for a given `block`).
        standard: whether to try the standard initialisations too.
        limits: marks of the verdict on blocks.
        layer_limits: from where a layer is reported.

    Raises:
        InvalidInput: bad example data, a module without parameters, `init` or `depth` that cannot
            be used; a `block` that changes the shape of its state.
    """
    examples.check(example, "example")
    if depth is not None and depth < 1:
        raise InvalidInput(f"depth is {depth}, but must be at least 1.")
    x = examples.take(example, slice(0, MEASURED))
    y = None if targets is None else targets[:MEASURED]
    signals = layer_signals(model, x, y, limits=layer_limits)
    few = examples.take(x, slice(0, FOLLOWED))
    theory, reason = _theory(model, few, init, block, depth, standard, limits)
    by_layers = judge_layers(signals)
    judgement = by_layers
    if theory is not None:
        judgement = _joined(theory.own.judgement, by_layers, measured=init == "module")
    condition, kind = _condition(model, few, init)
    return Trainability(
        judgement=judgement,
        method="layers" if theory is None else "mean field",
        method_reason=reason,
        own=None if theory is None else theory.own,
        standard=None if theory is None else theory.standard,
        measured=None if theory is None else theory.measured,
        layers=signals,
        condition=condition,
        condition_of=kind,
        advice=tuple(_advice(judgement, theory)),
        notes=tuple(_notes(model, theory, condition)),
    )


def _joined(theory: Judgement, layers: Judgement, *, measured: bool) -> Judgement:
    """The verdict of theory, or of the layers where they were `measured` and say more."""
    if not measured:
        return theory
    # Flat activations are a cause of what theory sees.
    if layers.state in CAUSES and theory.state in ("trainable", "vanishing gradients", "ordered"):
        return layers
    # What stands outside the repeated block, theory does not see.
    return layers if theory.trainable and layers.state in SEEN_OUTSIDE else theory


@dataclass(frozen=True, eq=False)
class _Theory:
    own: Initialisation
    standard: Initialisations | None
    measured: Propagation | None


def _theory(
    model: nn.Module,
    few: Examples,
    init: Init | str,
    block: nn.Module | None,
    depth: int | None,
    standard: bool,
    limits: DepthLimits | None,
) -> tuple[_Theory | None, str | None]:
    """Mean-field theory of the module, or None and why there is none."""
    if not isinstance(init, Init) and init != "module":
        raise InvalidInput(f'init is {init!r}; use "module" or an Init, e.g. Init.he().')
    try:
        maps = maps_of(model, few, init, block)
        if maps.block.normalises_batches:
            raise UnsupportedOperation(BATCHES)
        own = judged("own" if init == "module" else "given", maps, few, depth, limits)
        check_closed(maps, own.theory.start[0])
        others = compared(own, few, depth, limits) if standard else None
        measured = measured_states(maps.block, few) if block is None else None
    except InvalidInput:
        raise
    except TangencyError as error:
        return None, str(error)
    return _Theory(own, others, measured), None


def _condition(
    model: nn.Module, few: Examples, init: Init | str
) -> tuple[float, Literal["infinite", "empirical", "none"]]:
    """Of the infinite NTK where there is one, else of the empirical one."""
    if examples.count(few) < 2:
        return math.nan, "none"
    try:
        ntk = InfiniteKernel(model, few, init=init, dtype=torch.float64).ntk(few)
        if ntk.dim() == 2:
            return condition_number(ntk), "infinite"
    except TangencyError:
        pass
    try:
        return condition_number(EmpiricalKernel(model).ntk(few)), "empirical"
    except TangencyError:
        return math.nan, "none"


def _advice(judgement: Judgement, theory: _Theory | None) -> Iterator[str]:
    if judgement.trainable:
        return
    if judgement.state == "dead units":
        yield "Advice: normalise the inputs, start with smaller biases, or take leaky units."
    elif judgement.state == "saturating":
        yield "Advice: normalise the inputs (mean 0, variance 1), or start with smaller weights."
    if theory is None:
        if judgement.state in ("vanishing gradients", "exploding gradients", "signal explodes"):
            yield (
                "Advice: scale the weights of the layers above so that signal and gradient keep "
                "their size (Init.he() for ReLU), or add normalisation or residual connections."
            )
        return
    if theory.standard is not None and judgement is theory.own.judgement:
        yield from _better(theory.standard)
    scale = theory.own.theory.xi_gradient
    if math.isfinite(scale) and judgement is theory.own.judgement:
        yield (
            f"Advice: with these variances, stay below {6 * scale:.0f} blocks "
            f"(six depth scales of {scale:.2g})."
        )


def _better(standard: Initialisations) -> Iterator[str]:
    """The trainable initialisation whose gradients change least."""
    good = [row for row in standard.rows[1:] if row.judgement.trainable]
    if not good:
        yield (
            "Advice: no standard initialisation makes it trainable at this depth; residual "
            "connections or normalisation do."
        )
        return
    best = min(good, key=lambda row: abs(row.judgement.gradient))
    init = best.theory.maps.init
    if isinstance(init, Init) and isinstance(init.weight, float):
        moments = f"weights of variance {init.weight:.4g} / fan_in"
        biases = init.bias if isinstance(init.bias, float) else math.nan
        with_biases = f", biases of variance {biases:g}" if biases else ", biases zero"
        yield f"Advice: {best.name} initialisation ({moments}{with_biases}) makes it trainable."
    else:
        yield f"Advice: {best.name} initialisation makes it trainable."


def _notes(model: nn.Module, theory: _Theory | None, condition: float) -> Iterator[str]:
    if theory is not None:
        block = theory.own.theory.block
        if block.positions:
            yield "Note: theory takes states that are alike at all positions, away from borders."
        inside = sum(p.dim() > 1 for part in block.blocks for p in part.parameters())
        weights = sum(p.dim() > 1 for p in model.parameters())
        if 2 * inside < weights and theory.measured is not None:
            yield f"Note: the repeated blocks hold {inside} of the {weights} weights."
    if condition > ILL_CONDITIONED:
        yield (
            "Note: the NTK is ill-conditioned: gradient descent fits some directions of the "
            "targets very slowly."
        )


def _pulled_back(found: Propagation) -> Tensor:
    logs = torch.cat([found.gains.log(), torch.zeros(1, dtype=torch.float64)])
    total: Tensor = logs.flip(0).cumsum(0).flip(0)
    return total.exp()
