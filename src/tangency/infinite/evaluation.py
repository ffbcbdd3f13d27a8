"""Evaluates the block of the network's output on one tile, eagerly or by compiled code.

A tile's block is a pure function of the one-example quantities of its two sides and of the angles
between their inputs. The first is computed once per side, the second by a matrix product; what is
left is a chain of elementwise operations that `torch.compile` fuses into one loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tangency.infinite.input_angles import input_versines
from tangency.infinite.layout import Block, Layout, Ties
from tangency.infinite.pairs import Pairs, Quantities, WithoutSamples
from tangency.infinite.side import DATA, Side, SideTile
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.value import Value
from tangency.tiles import Tile

__all__ = ["FEWEST", "CompilationWarning", "CompiledBlock", "evaluate"]

Key = tuple[Hashable, ...]
Shapes = list[tuple[tuple[int, ...], torch.dtype]]
"""Sizes of quantities but for the number of examples, and their types."""
AngleKey = tuple[Concrete, Concrete, Ties]


LIKELY = 384
"""Examples per side for which code is tuned (whether a loop is worth several threads, say)."""


MOST_OPERATIONS = 2500
"""Compilation time grows faster than the number of operations: ten ReLU layers take two minutes."""

FEWEST = 64
"""Examples below which there is nothing to gain (nor enough unequal sizes to compile for)."""


def _options(device: torch.device) -> dict[str, str | int | bool | Callable[..., Any]]:
    """Let the C++ compiler contract a * b + c into one instruction, as GPU compilers do anyway."""
    return {"cpp.enable_floating_point_contract_flag": "fast"} if device.type == "cpu" else {}


class CompilationWarning(UserWarning):
    """Compilation failed, for lack of a C++ compiler for example; eager evaluation goes on."""


def evaluate(output: Value, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """NNGP and NTK of the output, `(*P, *P, n1, n2)`; dimensions of size 1 may be broadcast."""
    layout = Layout(output.positions, output.positions)
    block: Block | None = pairs.block(output, output, layout.ties)
    assert block is not None
    nngp = pairs.moment(output, output, block, layout)
    return nngp, torch.zeros_like(nngp) if block.ntk is None else block.ntk


class _Recorder(WithoutSamples):
    """Answers from a side and remembers what was asked."""

    def __init__(self, side: SideTile) -> None:
        self.side = side
        self.smooth = side.smooth
        self.asked: dict[Key, Tensor] = {}

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        result = self.side.quantity(value, name, *args, wide=wide)
        if name not in DATA:
            key = (value, name, wide, *args)
            self.asked[key] = result
        return result

    def mean(self, value: Value) -> Tensor | None:
        result = self.side.mean(value)
        if result is not None:
            self.asked[value, "mean", True] = result
        return result

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        return self.side.names(value, table)

    def number(self, number: float, *, wide: bool = False) -> Tensor:
        return self.side.number(number, wide=wide)


class _Given(WithoutSamples):
    """Answers from given tensors."""

    def __init__(self, side: SideTile, given: dict[Key, Tensor]) -> None:
        self.side = side
        self.smooth = side.smooth
        self.given = given

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        key = (value, name, wide, *args)
        return self.given[key]

    def mean(self, value: Value) -> Tensor | None:
        return self.given.get((value, "mean", True))

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        return self.side.names(value, table)

    def number(self, number: float, *, wide: bool = False) -> Tensor:
        return self.side.number(number, wide=wide)


class CompiledBlock:
    """The block of an output as one compiled function of the quantities of two sides.

    Compilation happens once, on a tile of likely but unequal sizes, which are left dynamic.
    """

    def __init__(self, output: Value, rows: Side, columns: Side) -> None:
        left, right = (_Recorder(SideTile(side, slice(0, 2))) for side in (rows, columns))
        pairs = Pairs(left, right)
        evaluate(output, pairs)
        self.dtype, self.device = rows.dtype, rows.device
        self.keys = list(left.asked), list(right.asked)
        self.angle_keys: list[AngleKey] = list(pairs.angle_blocks)
        if any("expansion" in key for key in [*left.asked, *right.asked]):
            raise RuntimeError("Hermite series of hundreds of terms take too long to compile")
        self.signature = self._signature(rows, columns)
        few = self._few(rows, columns)
        inputs = self._inputs(*few)

        def block(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return evaluate(output, self._pairs(few, tensors))

        graph = make_fx(block, tracing_mode="symbolic")(*inputs)
        operations = len(graph.graph.nodes)
        if operations > MOST_OPERATIONS:
            raise RuntimeError(f"{operations} operations would take too long to compile")
        self._run: Callable[..., tuple[Tensor, Tensor]] = torch.compile(
            graph, dynamic=True, options=_options(rows.device)
        )
        self._run(*inputs)

    def _few(self, rows: Side, columns: Side) -> tuple[SideTile, SideTile]:
        """A tile whose sizes differ from each other and from all others.

        Symbolic tracing takes equal sizes for the same size.
        """
        taken = {size for side in self.signature for shape, _ in side for size in shape}
        cuts = []
        for side in (rows, columns):
            size = min(LIKELY, side.count)
            while size in taken:
                size -= 1
            taken.add(size)
            cuts.append(SideTile(side, slice(0, size)))
        return cuts[0], cuts[1]

    def _pairs(self, sides: tuple[SideTile, SideTile], tensors: Sequence[Tensor]) -> Pairs:
        """The pairs of a tile, made of what `_inputs` returns."""
        first = _packed_length(self.signature[0], self.dtype)
        second = first + _packed_length(self.signature[1], self.dtype)
        parts = tensors[:first], tensors[first:second]
        given = [
            dict(zip(keys, _unpack(part, shapes, self.dtype), strict=True))
            for keys, part, shapes in zip(self.keys, parts, self.signature, strict=True)
        ]
        pairs = Pairs(_Given(sides[0], given[0]), _Given(sides[1], given[1]))
        pairs.angle_blocks.update(zip(self.angle_keys, tensors[second:], strict=True))
        return pairs

    def _inputs(self, left: SideTile, right: SideTile) -> list[Tensor]:
        quantities = [
            tensor
            for side, keys in zip((left, right), self.keys, strict=True)
            for tensor in _pack([_ask(side, key) for key in keys], self.dtype)
        ]
        return [*quantities, *(self._angles(left, right, key) for key in self.angle_keys)]

    @staticmethod
    def _angles(left: Quantities, right: Quantities, key: AngleKey) -> Tensor:
        u, v, ties = key
        layout = Layout(u.positions, v.positions, ties)
        units = left.quantity(u, "unit"), right.quantity(v, "unit")
        return input_versines(*units, layout, coincident=False)

    def on(self, rows: Side, columns: Side) -> Callable[[Tile], tuple[Tensor, Tensor]]:
        """A function that gives NNGP and NTK of a tile, as from `evaluate`."""
        mine = _pack([_ask(rows, key) for key in self.keys[0]], self.dtype)
        yours = _pack([_ask(columns, key) for key in self.keys[1]], self.dtype)

        def block(tile: Tile) -> tuple[Tensor, Tensor]:
            inputs = [t[..., tile.rows].contiguous() for t in mine]
            inputs += [t[..., tile.columns].contiguous() for t in yours]
            left, right = SideTile(rows, tile.rows), SideTile(columns, tile.columns)
            angles = (self._angles(left, right, key) for key in self.angle_keys)
            return self._run(*inputs, *angles)

        return block

    def fits(self, rows: Side, columns: Side) -> bool:
        """Whether the code was compiled for quantities like those of these sides.

        The length of a Hermite series, for one, depends on the data.
        """
        if (rows.dtype, rows.device) != (self.dtype, self.device):
            return False
        try:
            return self._signature(rows, columns) == self.signature
        except KeyError:
            return False

    def _signature(self, rows: Side, columns: Side) -> tuple[Shapes, Shapes]:
        """Sizes of all quantities but for the number of examples, which comes last."""
        return (
            [_shape(_ask(rows, key)) for key in self.keys[0]],
            [_shape(_ask(columns, key)) for key in self.keys[1]],
        )

    @classmethod
    def attempt(cls, output: Value, rows: Side, columns: Side) -> CompiledBlock | None:
        """A compiled block, or None with a `CompilationWarning` where compilation fails."""
        try:
            return cls(output, rows, columns)
        except Exception as error:
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "the kernel is evaluated eagerly, which gives the same result more slowly. "
                "On a CPU, torch.compile needs a C++ compiler.",
                CompilationWarning,
                stacklevel=4,
            )
            return None


def _shape(quantity: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(quantity.shape[:-1]), quantity.dtype


def _pack(quantities: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Vectors of type `dtype` over the examples as rows of one matrix, then all other quantities.

    A tile then cuts and passes few tensors.
    """
    vectors = [q for q in quantities if _shape(q) == ((), dtype)]
    others = [q for q in quantities if _shape(q) != ((), dtype)]
    return [torch.stack(vectors), *others] if vectors else others


def _packed_length(shapes: Shapes, dtype: torch.dtype) -> int:
    return len([shape for shape in shapes if shape != ((), dtype)]) + (((), dtype) in shapes)


def _unpack(packed: Sequence[Tensor], shapes: Shapes, dtype: torch.dtype) -> list[Tensor]:
    """What `_pack` packed, in the old order."""
    rest = iter(packed)
    vectors = iter(next(rest).unbind(0)) if ((), dtype) in shapes else iter(())
    return [next(vectors) if shape == ((), dtype) else next(rest) for shape in shapes]


def _ask(side: Quantities, key: Key) -> Tensor:
    value, name, wide, *args = key
    assert isinstance(value, Value)
    if name == "mean":
        mean = side.mean(value)
        assert mean is not None
        return mean
    return side.quantity(value, str(name), *args, wide=bool(wide))
