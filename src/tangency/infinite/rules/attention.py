"""Attention: `scaled_dot_product_attention`, and softmax(q @ k.T) @ v by hand.

The limit (Hron et al. 2020): the width d of every head goes to infinity, and the number of heads.

- Scale of order 1 / sqrt(d), which PyTorch uses, with independent weights of queries and keys: the
  logits are Gaussian, independent over the heads. Their softmax has no closed form: it is sampled.
- Scale 1 / d (Yang 2019, "Tensor Programs I"): the logits are the numbers scale * d * E[q k], zero
  where queries and keys are independent. All is closed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.dropout import keep_probability
from tangency.infinite.rules.sampled import over_positions
from tangency.infinite.rules.spatial import grouped, ungrouped
from tangency.infinite.side import Side
from tangency.infinite.values.attention import Attended, Logits, is_certain
from tangency.infinite.values.dropped import Dropped
from tangency.infinite.values.sampled import Sampled
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Coefficient, Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis, Dim, resolve, size_of
from tangency.program.operations import argument, arguments, base_name

__all__ = ["FewHeadsWarning", "product"]


class FewHeadsWarning(UserWarning):
    """One head's kernel stays random as its width grows; the limit taken is that of many heads."""


@rule("scaled_dot_product_attention")
def attention(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """softmax(scale q k^T + mask) v, the softmax perhaps with dropout; scale is 1 / sqrt(d) by
    default.
    """
    given = arguments(node)
    q, k, v = (cast(fx.Node, given[name]) for name in ("query", "key", "value"))
    _check_arguments(lowering, node, given)
    heads = _heads(lowering, q)
    width = size_of(resolve(lowering.program.axes[q][-1]))
    scale = given.get("scale")
    number = 1 / math.sqrt(width) if scale is None else cast(float, scale)
    keys = Axis("position", size_of(resolve(lowering.program.axes[k][-2])))
    query, key = lowering.value(q), _along(lowering, k, -2, keys)
    mask = _Mask(lowering, node, given.get("attn_mask"), bool(given.get("is_causal")), q)
    weights: Value
    if _vanishing(lowering, node, query, key, number, width):
        logits = _certain_logits(query, key, number * width)
        weights = _certain_weights(logits, keys, mask)
    else:
        _warn_of_few_heads(heads)
        lowering.need_samples(node, "has no closed form under the scale 1 / sqrt(d)")
        weights = _sampled_weights(_logits(lowering, query, key, width), number, keys, mask)
    p = cast(float, given.get("dropout_p") or 0.0)
    if p > 0:
        keep = keep_probability(lowering, node, p)
        weights = Dropped(weights, keep, (node.name, start, length), weights.positions)
    return _attended(lowering, node, weights, v, keys, start, length)


def _check_arguments(lowering: Lowering, node: fx.Node, given: dict[str, object]) -> None:
    if given.get("enable_gqa"):
        raise lowering.unsupported(
            node, "shares keys among groups of heads (enable_gqa), which has no rule yet"
        )
    for name in ("query", "key", "value"):
        operand = cast(fx.Node, given[name])
        atoms = resolve(lowering.program.axes[operand][-1])
        if not lowering.random(operand) or any(a.kind != "width" for a in atoms):
            raise lowering.unsupported(
                node, f"takes as its {name} something other than a random value with a width"
            )


def _heads(lowering: Lowering, query: fx.Node) -> int:
    """Number of heads: the width in front of the last dimension."""
    lead = lowering.program.axes[query][:-1]
    return size_of([a for dim in lead for a in resolve(dim) if a.kind == "width"])


def _warn_of_few_heads(heads: int) -> None:
    if heads == 1:
        warnings.warn(
            "the kernel of attention with a single head stays random as its width grows, under the "
            "scale 1 / sqrt(d); what is computed is its limit for many heads, which is the mean of "
            "the single head's kernel as long as linear layers follow (Hron et al. 2020).",
            FewHeadsWarning,
            stacklevel=2,
        )


def _vanishing(
    lowering: Lowering, node: fx.Node, query: Value, key: Value, scale: float, width: int
) -> bool:
    """Whether the randomness of the logits vanishes in the limit: a scale of order 1 / d.

    Raises:
        UnsupportedOperation: the logits diverge.
    """
    inverse = math.isclose(scale * width, 1.0, rel_tol=1e-6) and width > 1
    if query.origins.isdisjoint(key.origins):
        return inverse
    if not inverse and scale * math.sqrt(width) > 0.999:
        raise lowering.unsupported(
            node,
            f"multiplies queries and keys that share weights by {scale:.3g}, with heads of width "
            f"{width}: such logits grow like sqrt(d) and have no limit. Scale them by 1 / d",
        )
    return True


def _along(lowering: Lowering, node: fx.Node, dim: int, axis: Axis) -> Value:
    """A value over its whole width, with one axis `axis` in place of those of a dimension."""
    return grouped(lowering.value(node), lowering.program.axes[node][dim], axis)


def _attended(
    lowering: Lowering,
    node: fx.Node,
    weights: Value,
    values: fx.Node,
    keys: Axis,
    start: int,
    length: int,
) -> Value:
    """The values gathered by attention weights; values may be shared by all heads."""
    if lowering.width(values) == lowering.width(node):
        value = lowering.strand(values, start, length)
    else:
        value = lowering.value(values)
    return Attended(weights, grouped(value, lowering.program.axes[values][-2], keys), keys)


_LOGITS: WeakKeyDictionary[Lowering, list[Logits]] = WeakKeyDictionary()
"""The logits of a network so far."""


def _logits(lowering: Lowering, query: Value, key: Value, width: int) -> Logits:
    logits = Logits(query, key, width)
    known = _LOGITS.setdefault(lowering, [])
    for other in known:
        if not other.origins.isdisjoint(logits.origins):
            other.alone = logits.alone = False
    known.append(logits)
    return logits


# -- weights -----------------------------------------------------------------------------------


def _sampled_weights(logits: Logits, scale: float, keys: Axis, mask: _Mask) -> Value:
    rest = tuple(a for a in logits.positions if a is not keys)
    order = [1 + logits.positions.index(a) for a in (*rest, keys)]

    def function(side: Side, part: Tensor) -> Tensor:
        arranged = part.permute(0, *order, part.dim() - 1)
        return mask.softmax(side, scale * arranged, (*rest, keys))

    return Sampled((*rest, keys), [logits], function)


def _certain_logits(query: Value, key: Value, factor: float) -> Value:
    """factor * E[q k] on each example."""
    new = tuple(a for a in key.positions if a not in query.positions)
    positions = (*query.positions, *new)

    def evaluate(side: Side) -> Tensor:
        found = side.coincident_moment(query, key, positions)
        return side.full(side.number(0.0) if found is None else factor * found, positions)

    return _certain(evaluate, positions)


def _certain_weights(logits: Value, keys: Axis, mask: _Mask) -> Value:
    positions = (*(a for a in logits.positions if a is not keys), keys)
    order = [logits.positions.index(a) for a in positions]

    def evaluate(side: Side) -> Tensor:
        mean = side.mean(logits)
        assert mean is not None
        return mask.softmax(side, mean.permute(*order, mean.dim() - 1), positions)

    return _certain(evaluate, positions)


def _certain(evaluate: Callable[[Side], Tensor], positions: Positions) -> Value:
    """A number per example and position as a value."""

    def once(side: Side) -> Tensor:
        return side.memo((once, "certain"), lambda: evaluate(side))

    return Sum(positions, [Term(One(), 1.0, (Coefficient(once, positions),))])


class _Mask:
    """What is added to the logits, or which keys each query may see."""

    def __init__(
        self, lowering: Lowering, node: fx.Node, mask: object, causal: bool, query: fx.Node
    ) -> None:
        self.lowering = lowering
        self.node = node
        self.causal = causal
        self.lead = lowering.program.axes[query][:-2]
        self.rows = resolve(lowering.program.axes[query][-2])
        self.mask = mask if isinstance(mask, fx.Node) else None
        if self.mask is not None and lowering.program.nature[self.mask] != "concrete":
            raise lowering.unsupported(node, "has a mask that depends on parameters")

    def softmax(self, side: Side, logits: Tensor, positions: Positions) -> Tensor:
        """Softmax over the keys, the last of `positions`; zero for a query that may see none."""
        allowed, bias = self._parts(side, positions)
        if bias is not None:
            logits = logits + bias
        if allowed is None:
            return torch.softmax(logits, dim=-2)
        some = allowed.any(dim=-2, keepdim=True)
        weights = torch.softmax(logits.masked_fill(~(allowed | ~some), -math.inf), dim=-2)
        return weights.masked_fill(~some, 0.0)

    def _parts(self, side: Side, positions: Positions) -> tuple[Tensor | None, Tensor | None]:
        """Which keys may be seen, and what is added, over `(*positions, n)`."""
        allowed, bias = None, None
        if self.mask is not None:
            given = self._arranged(cast(Tensor, side.concrete(self.mask)), side, positions)
            if given.dtype == torch.bool:
                allowed = given
            else:
                seen = given > -math.inf
                allowed = None if bool(seen.all()) else seen
                bias = torch.where(seen, given, 0.0).double()
        if self.causal:
            below = self._causal(side, positions)
            allowed = below if allowed is None else allowed & below
        return allowed, bias

    def _causal(self, side: Side, positions: Positions) -> Tensor:
        count, keys = size_of(self.rows), positions[-1].size
        below = torch.ones(count, keys, dtype=torch.bool, device=side.device).tril()
        split = below.reshape(*(a.size for a in self.rows), keys, 1)
        return _placed(split, (*self.rows, positions[-1]), positions)

    def _arranged(self, mask: Tensor, side: Side, positions: Positions) -> Tensor:
        """From `(*lead, rows, keys)`, broadcast, to `(*positions, n)`."""
        dims = (*self.lead, self.rows)
        whole = mask.reshape(*[1] * (len(dims) + 1 - mask.dim()), *mask.shape)
        have: list[Axis] = []
        shape: list[int] = []
        for k, dim in enumerate(dims):
            whole = self._one_head(whole, k, dim)
            atoms = [a for a in resolve(dim) if a.kind != "width"]
            full = whole.shape[k] > 1
            have.extend(atoms)
            shape.extend(
                (side.count if a.kind == "batch" else a.size) if full else 1 for a in atoms
            )
        split = whole.reshape(*shape, whole.shape[-1])
        batch = next((k for k, a in enumerate(have) if a.kind == "batch"), None)
        if batch is None:
            return _placed(split[..., None], (*have, positions[-1]), positions)
        rest = tuple(a for a in have if a.kind != "batch")
        return _placed(split.movedim(batch, -1), (*rest, positions[-1]), positions)

    def _one_head(self, mask: Tensor, dim: int, axes: Dim) -> Tensor:
        """The mask of one head, which all must have."""
        if all(a.kind != "width" for a in resolve(axes)) or mask.shape[dim] == 1:
            return mask
        if any(a.kind != "width" for a in resolve(axes)):
            raise self.lowering.unsupported(self.node, "merges heads with another axis of the mask")
        first = mask.narrow(dim, 0, 1)
        if not bool((mask == first).all()):
            raise self.lowering.unsupported(
                self.node, "has another mask for each head, so that the heads are not alike"
            )
        return first


def _placed(values: Tensor, have: Positions, want: Positions) -> Tensor:
    """`(*have, n)` over `(*want, n)`, with ones for what it lacks."""
    sizes = dict(zip(have, values.shape, strict=False))
    order = sorted(range(len(have)), key=lambda k: want.index(have[k]))
    moved = values.permute(*order, values.dim() - 1)
    return moved.reshape(*(sizes.get(a, 1) for a in want), values.shape[-1])


# -- by hand -----------------------------------------------------------------------------------


def product(
    lowering: Lowering, node: fx.Node, factors: tuple[fx.Node, fx.Node], start: int, length: int
) -> Value:
    """Of two random values: logits q @ k.T, or values gathered by attention weights z @ v."""
    left, right = factors
    axes = lowering.program.axes
    if any(a.kind == "width" for a in resolve(axes[right][-1])):
        weights, keys = lowering.value(left).memo(_over_keys, resolve(axes[left][-1]))
        return _attended(lowering, node, weights, right, keys, start, length)
    contracted = resolve(axes[left][-1])
    if any(a.kind != "width" for a in contracted):
        raise lowering.unsupported(node, "multiplies two random values along positions")
    return _logits_by_hand(lowering, node, (left, right), size_of(contracted))


def _over_keys(weights: Value, atoms: Positions) -> tuple[Value, Axis]:
    """Attention weights with one axis for the keys; masks of dropout stay outermost."""
    keys = Axis("position", size_of(atoms))
    if not isinstance(weights, Dropped):
        return grouped(weights, atoms, keys), keys
    masked = (*(a for a in weights.masked if a not in atoms), keys)
    whole = grouped(weights.source, atoms, keys)
    return Dropped(whole, weights.keep, weights.identity, masked), keys


def _logits_by_hand(
    lowering: Lowering, node: fx.Node, operands: tuple[fx.Node, fx.Node], width: int
) -> Value:
    """q @ k.T; the scale may come before or after."""
    axes = lowering.program.axes
    columns = resolve(axes[node][-1])
    query = lowering.value(operands[0])
    whole = Axis("position", size_of(columns))
    key = ungrouped(_along(lowering, operands[1], -1, whole), whole, columns)
    scale = _scale_after(node) * _scale_before(operands[0]) * _scale_before(operands[1])
    if _vanishing(lowering, node, query, key, scale, width):
        return _certain_logits(query, key, float(width))
    _warn_of_few_heads(_heads(lowering, node))
    return _logits(lowering, query, key, width)


_SAME = frozenset(
    {"transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "expand", "clone", "to"}
    | {"contiguous", "_to_copy", "flatten", "unflatten", "t", "numpy_T", "dropout"}
)


def _number_of(node: fx.Node) -> float | None:
    """The number by which a node multiplies its first argument; None if it does something else."""
    name = base_name(node)
    if name in _SAME:
        return 1.0
    if name in ("mul", "div") and isinstance(node.args[1], (int, float)):
        number = float(node.args[1])
        return number if name == "mul" else 1 / number
    return None


def _scale_before(node: fx.Node) -> float:
    """The product of the numbers that a value was multiplied by last."""
    scale = 1.0
    while (number := _number_of(node)) is not None:
        scale *= number
        node = cast(fx.Node, node.args[0])
    return scale


def _scale_after(node: fx.Node) -> float:
    """The product of the numbers that a value is multiplied by next."""
    scale = 1.0
    while len(node.users) == 1:
        node = next(iter(node.users))
        number = _number_of(node)
        if number is None:
            break
        scale *= number
    return scale


@rule("softmax", "_softmax")
def softmax(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Over positions: a number where the logits are numbers, otherwise by samples."""
    source = cast(fx.Node, node.args[0])
    value = lowering.strand(source, start, length)
    if not is_certain(value):
        return over_positions(lowering, node, start, length)
    dim = cast(int, argument(node, 1, "dim"))
    atoms = resolve(lowering.program.axes[source][dim])
    dims = [value.positions.index(a) for a in atoms if a in value.positions]

    def evaluate(side: Side) -> Tensor:
        mean = side.mean(value)
        assert mean is not None
        return torch.softmax(mean.flatten(dims[0], dims[-1]), dims[0]).reshape(mean.shape)

    return _certain(evaluate, value.positions)
