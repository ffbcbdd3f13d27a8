"""Which block a module repeats, found in what it computes rather than in how it is written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from tangency.diagnosis.trainability.segments import Segment, is_number, static_inputs
from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.examples import Examples
from tangency.program.operations import base_name
from tangency.program.trace import Trace, evaluation_mode, trace

__all__ = ["AFFINE", "RepeatedBlock", "as_block", "find_block"]

AFFINE = frozenset({"linear", "addmm", "mm", "matmul", "conv1d", "conv2d", "conv3d", "convolution"})
"""Operations by a weight, whose results are Gaussian over the width."""

CHANNELS_FIRST = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "batch_norm"})


@dataclass(frozen=True, eq=False, repr=False)
class RepeatedBlock:
    """A block that a module applies several times, each time with weights of its own.

    Attributes:
        blocks: the repetitions in order, modules of one tensor; parameters by their names.
        before: what comes before the first repetition, called with the tensors of the examples;
            None where the first repetition acts on the data.
        state: shape of what the blocks pass on, without the batch.
        channels_first: whether the width is the first dimension of `state`, not the last.
        operations: what one block does, in order.
    """

    blocks: tuple[Segment, ...]
    before: Segment | None
    state: tuple[int, ...]
    channels_first: bool
    operations: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Number of repetitions."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Size of the dimension that goes to infinity."""
        return self.state[0] if self.channels_first else self.state[-1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the other dimensions."""
        return self.state[1:] if self.channels_first else self.state[:-1]

    @property
    def normalises_batches(self) -> bool:
        """Whether the block holds batch normalisation, which is read in evaluation mode."""
        return any(name.endswith("batch_norm") for name in self.operations)

    def __repr__(self) -> str:
        names = [name for name, _ in self.blocks[0].named_parameters()]
        last = [name for name, _ in self.blocks[-1].named_parameters()]
        span = f"{names[0]} to {last[-1]}" if names else "no parameters"
        return (
            f"RepeatedBlock({', '.join(self.operations)}; {self.depth} times, "
            f"state {self.state}, {span})"
        )


def find_block(model: nn.Module, example: Examples) -> RepeatedBlock:
    """The block that `model` repeats most often.

    The recorded computation is cut where a single value carries everything on; stretches between
    cuts that do the same with weights of the same shapes are repetitions. So a block is found in
    an `nn.Sequential`, in a loop over an `nn.ModuleList` and in code written by hand alike. Among
    the ways to cut a cycle, one that ends with a weight is preferred: the blocks then pass on
    preactivations, as in the literature.

    Raises:
        InvalidInput: bad example data.
        UnsupportedOperation: the module cannot be recorded, repeats nothing, or repeats a block
            with the same weights.
    """
    with evaluation_mode(model):
        recorded = trace(model, example)
    chain = _Chain(recorded)
    run = _best_run(chain)
    if run is None:
        raise UnsupportedOperation(
            f"{type(model).__name__} repeats no block with weights (stretches of operations from "
            "one value to the next that have weights of equal shapes): mean-field theory is about "
            "such repetitions. Pass block=, a module that maps a state to one of the same shape."
        )
    start, period, repeats = run
    blocks = tuple(
        chain.segment(start + k * period, start + (k + 1) * period) for k in range(repeats)
    )
    names = [frozenset(name for name, _ in block.named_parameters()) for block in blocks]
    if names[0] & names[1]:
        raise UnsupportedOperation(
            f"{type(model).__name__} repeats a block with the same weights "
            f"({', '.join(sorted(names[0] & names[1]))}): mean-field theory of depth is about "
            "independent weights. Pass block= for that of untied layers."
        )
    source = chain.value_before(start)
    nodes = [n for segment in chain.segments[start : start + period] for n in segment]
    return RepeatedBlock(
        blocks=blocks,
        before=chain.segment(0, start) if start else None,
        state=tuple(int(s) for s in source.meta["val"].shape[1:]),
        channels_first=_channels_first(nodes),
        operations=tuple(base_name(n) for n in nodes),
    )


def as_block(block: nn.Module, state: Tensor, depth: int) -> RepeatedBlock:
    """A module that maps a state to one of the same shape, as the block of a network.

    The module is the representative of all repetitions: only the moments of its parameters count.

    Args:
        block: the module.
        state: a batch of states; only shape and dtype matter.
        depth: number of repetitions.

    Raises:
        InvalidInput: `block` changes the shape of the state or has no weights, or the depth is
            below 1.
        UnsupportedOperation: it cannot be recorded.
    """
    if depth < 1:
        raise InvalidInput(f"depth is {depth}, but must be at least 1.")
    with evaluation_mode(block):
        recorded = trace(block, state)
    returned = tuple(recorded.output.meta["val"].shape[1:])
    if not isinstance(state, Tensor) or returned != tuple(state.shape[1:]):
        given = tuple(state.shape[1:]) if isinstance(state, Tensor) else type(state).__name__
        raise InvalidInput(
            f"block must map a state to one of the same shape, but it maps {given} to {returned} "
            "(without the batch): such a block cannot be repeated."
        )
    if not any(p.dim() > 1 for p in block.parameters()):
        raise InvalidInput(
            f"block ({type(block).__name__}) has no weights: there is no limit of it."
        )
    chain = _Chain(recorded)
    nodes = [n for segment in chain.segments for n in segment]
    return RepeatedBlock(
        blocks=tuple(chain.segment(0, len(chain.segments)) for _ in range(depth)),
        before=None,
        state=tuple(int(s) for s in state.shape[1:]),
        channels_first=_channels_first(nodes),
        operations=tuple(base_name(n) for n in nodes),
    )


class _Chain:
    """A computation as a chain of segments, each a function of the value before it alone."""

    def __init__(self, recorded: Trace) -> None:
        self.trace = recorded
        self.inputs = [n for n in recorded.inputs if isinstance(n.meta.get("val"), Tensor)]
        self.segments = _cut(_on_data(recorded, self.inputs), self.inputs)

    def value_before(self, place: int) -> fx.Node:
        """What segment number `place` acts on."""
        return self.segments[place - 1][-1] if place else self.inputs[0]

    def segment(self, start: int, stop: int) -> Segment:
        """The segments from `start` to `stop` as a module."""
        nodes = [node for segment in self.segments[start:stop] for node in segment]
        return Segment(self.trace, nodes, [self.value_before(start)] if start else self.inputs)

    def signature(self, place: int) -> object:
        """Equal for segments that do the same with weights of the same shapes."""
        nodes = self.segments[place]
        sources = [self.value_before(place)] if place else self.inputs
        numbers: dict[fx.Node, object] = {s: f"source {k}" for k, s in enumerate(sources)}
        described: list[object] = []
        for node in nodes:
            numbers[node] = len(described)
            described.append(_describe(node, numbers, self.trace, inside=True))
        return tuple(described)

    def shape(self, place: int) -> tuple[object, ...]:
        """Of the value before a segment, without the batch."""
        return tuple(self.value_before(place).meta["val"].shape[1:])


def _on_data(recorded: Trace, inputs: Sequence[fx.Node]) -> list[fx.Node]:
    """The operations that depend on the data and that the output depends on, in order."""
    live, stack = set(), [recorded.output]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    found = set(inputs)
    for node in recorded.graph.nodes:
        if node in live and not is_number(node) and found.intersection(node.all_input_nodes):
            found.add(node)
    return [n for n in recorded.graph.nodes if n in found and n.op == "call_function"]


def _cut(nodes: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """Cut a sequence of operations wherever one value alone is needed later."""
    place = {node: k for k, node in enumerate(nodes)}
    last = [max((place[u] for u in n.users if u in place), default=-1) for n in (*inputs, *nodes)]
    reach = max(last[: len(inputs)], default=-1)
    segments: list[list[fx.Node]] = []
    current: list[fx.Node] = []
    for k, node in enumerate(nodes):
        current.append(node)
        if reach <= k and isinstance(node.meta.get("val"), Tensor):
            segments.append(current)
            current = []
        reach = max(reach, last[len(inputs) + k])
    return segments


def _describe(
    value: object, numbers: dict[fx.Node, object], recorded: Trace, *, inside: bool = False
) -> object:
    """An argument or operation, the same for equal ones of different repetitions."""
    if isinstance(value, (list, tuple)):
        return tuple(_describe(v, numbers, recorded) for v in value)
    if isinstance(value, dict):
        return tuple((k, _describe(v, numbers, recorded)) for k, v in sorted(value.items()))
    if not isinstance(value, fx.Node):
        return repr(value)
    if value in numbers and not inside:
        return numbers[value]
    if is_number(value):
        return str(value.meta["val"])
    if value in recorded.parameters:
        return ("parameter", tuple(recorded.values[value].shape))
    if value in recorded.constants:
        return ("constant", tuple(recorded.constants[value].shape))
    return (
        str(value.target),
        _describe(value.args, numbers, recorded),
        _describe(value.kwargs, numbers, recorded),
    )


def _best_run(chain: _Chain) -> tuple[int, int, int] | None:
    """First segment, segments per block and number of blocks of the longest repetition."""
    known: dict[object, int] = {}
    kinds = [known.setdefault(chain.signature(k), len(known)) for k in range(len(chain.segments))]
    best: tuple[float, int, int] | None = None
    found = None
    for period in range(1, len(kinds) // 2 + 1):
        for start in range(len(kinds) - 2 * period + 1):
            repeats = _repeats(kinds, start, period)
            if repeats < 2 or (best is not None and repeats < best[0]):
                continue
            if chain.shape(start) != chain.shape(start + period):
                continue
            block = [n for s in chain.segments[start : start + period] for n in s]
            if not _has_weight(block, chain, start):
                continue
            ends_affine = base_name(block[-1]) in AFFINE
            score = (repeats - (0.0 if ends_affine else 0.5), -period, -start)
            if best is None or score > best:
                best, found = score, (start, period, repeats)
    return found


def _repeats(kinds: Sequence[int], start: int, period: int) -> int:
    """How often the stretch of `period` kinds at `start` follows itself."""
    block = kinds[start : start + period]
    stops = itertools.count(start, period)
    return next(k for k, s in enumerate(stops) if kinds[s : s + period] != block)


def _has_weight(block: Sequence[fx.Node], chain: _Chain, start: int) -> bool:
    sources = static_inputs(block, [chain.value_before(start)] if start else chain.inputs)
    return any(n in chain.trace.parameters and chain.trace.values[n].dim() > 1 for n in sources)


def _channels_first(nodes: Sequence[fx.Node]) -> bool:
    """By the first operation that knows: convolutions have their width in front."""
    for node in nodes:
        if base_name(node) in CHANNELS_FIRST:
            return True
        if base_name(node) in ("linear", "addmm", "layer_norm"):
            return False
    return False
