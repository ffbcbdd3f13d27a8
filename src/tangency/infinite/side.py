"""One data set as the infinite-width engine sees it: everything that concerns single examples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency import examples
from tangency.errors import UnsupportedOperation
from tangency.examples import Examples
from tangency.infinite.layout import Layout, Positions
from tangency.infinite.memory import Memory
from tangency.infinite.pairs import Pairs
from tangency.infinite.roots import root
from tangency.infinite.sampling.draw import Draw, NeedsSamples, Sampling
from tangency.infinite.sampling.draws import Draws
from tangency.infinite.sampling.plan import SamplingPlan
from tangency.infinite.trial import Trial
from tangency.infinite.values.scaled import Scaled
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import BATCH, resolve, size_of
from tangency.program.capture import Program
from tangency.program.operations import base_name
from tangency.program.trace import location

__all__ = ["DATA", "MEMORY_BUDGET", "Side", "SideTile"]

T = TypeVar("T")

MEMORY_BUDGET = 2 << 30
"""Bytes that the covariances of one tile may take together."""

CHUNK = 1 << 22
"""Entries of a block between the positions of single examples."""

KEPT = 1 << 19
"""Entries of such a block of all examples up to which the blocks of all layers are kept."""

KEPT_SHARE = MEMORY_BUDGET // KEPT
"""Bytes of a smaller memory for each of these entries."""

DATA = ("array", "unit")
"""Quantities of data `(*positions, n, features)`; all others end in the examples."""


class Side:
    """A batch of examples, its concrete values, and the one-example quantities of all values.

    Quantities are O(n): they are computed once for the whole data set, in float64, and tiles cut
    from them in `dtype`. Data stay in `dtype`. A side `like` another of the same data, but with
    other samples, has what does not rest on samples from it. A `plan` says how samples keep to
    their memory.
    """

    def __init__(
        self,
        program: Program,
        x: Examples,
        dtype: torch.dtype,
        pieces: Callable[[fx.Node], Sequence[tuple[float, Value]]],
        sampling: Sampling | None = None,
        like: Side | None = None,
        plan: SamplingPlan | None = None,
    ) -> None:
        self.program = program
        self.count = examples.count(x)
        self.dtype = dtype
        self.device = examples.tensors(x)[0].device
        self.smooth = torch.is_grad_enabled() and any(t.requires_grad for t in examples.tensors(x))
        samples = 0 if sampling is None else sampling.samples
        self._plan = plan or SamplingPlan(MEMORY_BUDGET, self.count, samples)
        self.rehearsal = self._plan.record is not None
        self.pairs: Pairs = Pairs(
            self, self, coincident=True, like=None if like is None else like.pairs
        )
        self._pieces = pieces
        self._open: dict[tuple[Value, str], _Chunks] = {}
        self._sampling = sampling
        self._memo: Memory = Memory(None if like is None else like._memo)
        self._earlier = None if like is None else like.draws
        leaves = examples.tensors(examples.cast(x, dtype))
        self._concrete: dict[fx.Node, Any] = dict(zip(program.trace.inputs, leaves, strict=True))

    # -- numbers and memory ------------------------------------------------------------------

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value remembered under `key`, computed at first need."""
        return cast(T, self._memo.ask(key, compute))

    def number(self, number: float | Tensor, *, wide: bool = True) -> Tensor:
        """A scalar tensor, in float64 or in `dtype`."""
        dtype = torch.float64 if wide else self.dtype
        return torch.as_tensor(number, dtype=dtype, device=self.device)

    @cached_property
    def draws(self) -> Draws:
        """Joint samples of the values on this side."""
        if self._sampling is None:
            raise NeedsSamples(
                "a covariance in this network has no closed form (values that depend on the same "
                'weights are multiplied): pass numerical="sample" to estimate it by samples.'
            )
        whole = SideTile(self, slice(0, self.count))
        earlier, self._earlier = self._earlier, None
        return Draws(self, whole, self._sampling, self._plan, like=earlier)

    def release(self) -> None:
        """Forget all samples and what rests on them; after a rehearsal, everything.

        Otherwise it would stay until Python looks for reference cycles.
        """
        self.draws.release()
        for memory in (self._memo, self.pairs.memory):
            if self.rehearsal:
                memory.clear()
            else:
                memory.forget_samples()

    def clear(self) -> None:
        """Forget everything, at once: sides are parts of reference cycles."""
        for memory in (self._memo, self.pairs.memory):
            memory.clear()
        self._open.clear()
        self._concrete.clear()

    @property
    def by_samples(self) -> bool:
        """Whether there are samples, and so covariances of all pairs of examples."""
        return self._sampling is not None

    def parts(self, *values: Value) -> Iterator[slice]:
        """All samples, so many of the values at a time as fit into memory."""
        return self.draws.parts(*values)

    def samples(self, value: Value, part: slice) -> Draw:
        """Some samples of a value, `(S, *positions, n)`."""
        return self.draws.for_pairs(value, part)

    def full(self, values: Tensor, positions: Positions) -> Tensor:
        """`values` expanded to `(*positions, n)`."""
        return values.expand(*(axis.size for axis in positions), self.count)

    # -- quantities of values ----------------------------------------------------------------

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = True) -> Tensor:
        """The result of the method `name` of a value on this side, `(*lead, *positions, n)`.

        It is computed in float64; without `wide`, it is given in `dtype`.
        """
        if not wide:
            key = (value, name, *args, "narrow")
            return self.memo(key, lambda: self.quantity(value, name, *args).to(self.dtype))
        if name == "sd":
            return self.sd(value)
        key = (value, name, *args)
        return self.memo(key, lambda: cast(Tensor, getattr(value, name)(*args, self)))

    def second_moment(self, value: Value) -> Tensor:
        """E[u^2]."""
        return self.quantity(value, "second_moment")

    def sd(self, value: Value) -> Tensor:
        """Square root of the second moment."""
        return self.memo((value, "sd"), lambda: root(self.second_moment(value)))

    def mean(self, value: Value) -> Tensor | None:
        """E[u]; None where it is zero by construction."""
        return self.memo((value, "mean"), lambda: value.mean(self))

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        """Names of the entries of a composite's table."""
        return tuple(self.memo((table, value), lambda: getattr(value, table)(self)))

    def coincident_moment(self, u: Value, v: Value, positions: Positions) -> Tensor | None:
        """E[u v] on the same example, over `positions` (a superset of both values' positions)."""
        ties = frozenset((a, a) for a in u.positions if a in v.positions)
        block = self.pairs.block(u, v, ties)
        if block is None:
            return None
        layout = Layout(u.positions, v.positions, ties)
        moment = self.pairs.moment(u, v, block, layout)
        return to_positions(moment, (*layout.left, *layout.free_right), positions)

    def by_chunks(
        self, value: Value, name: str, entries: int, compute: Callable[[Pairs], Tensor]
    ) -> Tensor:
        """What `compute` makes of coincident pairs of some examples at a time, for all examples.

        Where it has to start anew (`tangency.infinite.memory`), it goes on from what was found.

        Args:
            value, name: what the result is called.
            entries: size of the block of one example.
            compute: gives `(..., n)`.
        """
        key = (value, name)
        if self.count * entries <= min(KEPT, self._plan.memory // KEPT_SHARE):
            return torch.cat([compute(self.pairs)], dim=-1)
        if key not in self._open:
            self._open[key] = _Chunks(self)
        open_ = self._open[key]
        if not open_.planned:
            open_.plan(entries, compute)
        parts = []
        for k in range(len(open_.pairs)):
            part = (*key, "chunk", k)
            parts.append(self.memo(part, lambda k=k: compute(open_.pairs[k])))  # type: ignore[misc]
            open_.pairs[k] = self.pairs  # the covariances of this chunk are not needed again
        del self._open[key]
        return torch.cat(parts, dim=-1)

    # -- concrete values ---------------------------------------------------------------------

    def concrete(self, node: fx.Node) -> Any:
        """What a concrete node (or a limit statistic) computes on this side, in its own shape."""
        if node not in self._concrete:
            self._concrete[node] = self._execute(node)
        return self._concrete[node]

    def _execute(self, node: fx.Node) -> Any:
        if node in self.program.trace.constants:
            constant = self.program.trace.constants[node].to(self.device)
            return constant.to(self.dtype) if constant.is_floating_point() else constant
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return self._integer(value)
        inputs = node.all_input_nodes
        if any(self.program.nature[n] == "random" for n in inputs):
            return self._mean_over_width(node)
        args, kwargs = map_arg((node.args, node.kwargs), self.concrete)
        return cast(Callable[..., Any], node.target)(*args, **kwargs)

    def _integer(self, value: int | torch.SymInt) -> int:
        if isinstance(value, int):
            return value
        expression = value.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, self.count)))

    def _mean_over_width(self, node: fx.Node) -> Tensor:
        """A mean over a width (and perhaps positions) of random values: deterministic."""
        wanted = self.program.atoms(node, "position")
        centred = True
        total = self.full(self.number(0.0), wanted)
        for fraction, value in self._pieces(node):
            mean = self.mean(value)
            if mean is None:
                continue
            reduced = [k for k, axis in enumerate(value.positions) if axis not in wanted]
            mean = mean.mean(dim=reduced) if reduced else mean
            kept = tuple(axis for axis in value.positions if axis in wanted)
            total = total + fraction * to_positions(mean, kept, wanted)
            weighted = isinstance(value, Scaled) and not value.scale.uniform
            centred = centred and weighted
        if base_name(node) == "sum":
            if centred:
                raise UnsupportedOperation(
                    f"{location(node)} sums a width of mean zero, or one multiplied by weights: "
                    "the sum is a random number, however wide the layer is. A linear layer with "
                    "one output is what weighs and sums a width."
                )
            total = total * self._reduced(node)
        return self._raw(node, total)

    def _reduced(self, node: fx.Node) -> int:
        """Number of coordinates that a reduction of a width takes together."""
        source = cast(fx.Node, node.args[0])
        atoms = self.program.atoms(source)
        return size_of(a for a in atoms if a not in self.program.atoms(node))

    def _raw(self, node: fx.Node, canonical: Tensor) -> Tensor:
        """From `(*positions, n)` to the shape that the node has in the module."""
        shape = self.program.axes[node]
        positions = self.program.atoms(node, "position")
        atoms = [axis for dim in shape for axis in resolve(dim) if axis.kind != "width"]
        order = [len(positions) if a.kind == "batch" else positions.index(a) for a in atoms]
        sizes = []
        for dim in shape:
            size = 1
            for axis in resolve(dim):
                if axis.kind != "width":
                    size *= self.count if axis.size == BATCH else axis.size
            sizes.append(size)
        return canonical.permute(*order).reshape(sizes)

    def features(self, node: fx.Node, positions: Positions, features: Positions) -> Tensor:
        """A concrete node as `(*positions, n, features)`, the features flattened in order."""
        value = cast(Tensor, self.concrete(node)).to(self.dtype)
        atoms = [axis for dim in self.program.axes[node] for axis in resolve(dim)]
        sizes = [self.count if axis.kind == "batch" else axis.size for axis in atoms]
        value = value.reshape(sizes)
        if not any(axis.kind == "batch" for axis in atoms):
            value = value.unsqueeze(0).expand(self.count, *sizes)
            order = [0, *(atoms.index(a) + 1 for a in (*positions, *features))]
        else:
            batch = next(k for k, axis in enumerate(atoms) if axis.kind == "batch")
            order = [batch, *(atoms.index(a) for a in (*positions, *features))]
        moved = (
            value.permute(*order).flatten(1 + len(positions))
            if features
            else (value.permute(*order).unsqueeze(-1))
        )
        return moved.movedim(0, -2)


class SideTile:
    """The quantities of some examples of a side: what a tile of a kernel matrix needs of it."""

    def __init__(self, side: Side, index: slice) -> None:
        self.side = side
        self.index = index
        self.smooth = side.smooth
        self.rehearsal = side.rehearsal

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        """A quantity cut to the tile's examples, in the data's type or in float64."""
        whole = self.side.quantity(value, name, *args, wide=wide)
        if name in DATA:
            return whole[..., self.index, :]
        return whole[..., self.index]

    def mean(self, value: Value) -> Tensor | None:
        """The mean cut to the tile's examples."""
        mean = self.side.mean(value)
        return None if mean is None else mean[..., self.index]

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        """Names of the entries of a composite's table."""
        return self.side.names(value, table)

    def parts(self, *values: Value) -> Iterator[slice]:
        """All samples, some at a time."""
        return self.side.parts(*values)

    def samples(self, value: Value, part: slice) -> Draw:
        """Some samples of a value at the tile's examples."""
        whole = self.side.samples(value, part)
        return Draw(whole.value[..., self.index], whole.tangent[..., self.index])

    def number(self, number: float | Tensor, *, wide: bool = False) -> Tensor:
        """A scalar tensor."""
        return self.side.number(number, wide=wide)


class _Chunks:
    """Coincident pairs of some examples of a side at a time."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.planned = False
        self.pairs: list[Pairs] = []
        first = SideTile(side, slice(0, 1))
        self._trial = Trial(first, first, coincident=True)

    def plan(self, entries: int, compute: Callable[[Pairs], Tensor]) -> None:
        """Take as many examples as fit into a quarter of the budget, with `entries` for each."""
        needs = self._trial.needs(compute)
        size = CHUNK // entries
        if needs is not None:
            size = min(size, MEMORY_BUDGET // 4 // needs.peak)
        size, count = max(1, size), self.side.count
        for start in range(0, count, size):
            tile = SideTile(self.side, slice(start, min(start + size, count)))
            uses = None if needs is None else needs.uses
            self.pairs.append(Pairs(tile, tile, coincident=True, uses=uses))
        self.planned = True
