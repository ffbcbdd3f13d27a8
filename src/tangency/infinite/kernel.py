"""The infinite-width NNGP and NTK of a module."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, fx, nn

from tangency import examples, tiles
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.infinite import rules  # noqa: F401  (registers the rules)
from tangency.infinite.exact import Evaluation
from tangency.infinite.independence import check_independence
from tangency.infinite.init import Init
from tangency.infinite.lowering import Lowering
from tangency.infinite.parameters import Parametrization, module_parameters
from tangency.infinite.planning import MEMORY_BUDGET, examples_per_side
from tangency.infinite.rules.affine import refuse_mixing
from tangency.infinite.rules.pointwise import refuse_varying_factors
from tangency.infinite.sampling import estimation
from tangency.infinite.sampling.draw import NeedsSamples, Sampling
from tangency.infinite.sampling.estimation import Estimate
from tangency.infinite.sampling.plan import DoesNotFit, SamplingPlan, planned
from tangency.infinite.sampling.retention import Record
from tangency.infinite.sampling.scratch import Scratch
from tangency.infinite.sampling.sizes import Room
from tangency.infinite.side import Side
from tangency.infinite.values.value import Value
from tangency.kernel_pair import KernelPair
from tangency.program.capture import Program, capture
from tangency.program.outputs import Output

__all__ = ["InfiniteKernel"]

REHEARSED = 16
"""Samples of a rehearsal."""


class InfiniteKernel:
    """The NNGP and NTK of `model` as the widths of its hidden layers go to infinity.

    The module is captured and read as a tensor program (Yang 2020, "Tensor Programs II"): every
    value is, over its width, i.i.d. copies of a random variable, and the covariances of pairs of
    values follow from layer to layer. What goes to infinity is every output dimension of a
    weight; weights that are shared (a recurrent network) are seen as shared.

    Args:
        model: the module; it is left as it is, and read in evaluation mode.
        example: a batch like those that the kernel will be asked for (a tensor, or a tuple or
            dictionary of tensors); only its shapes and dtypes matter.
        init: "module" measures the second moments of the module's own parameters (a trained
            network draws a `NotIidWarning`); an `Init` prescribes them. Scales and shifts of
            normalisations are constants at their present values in both cases.
        parametrization: "standard" is the network as it stands, with W_ij of variance w2 / fan_in
            and the NTK summed over all parameters, so that it compares with the empirical NTK;
            "ntk" is W = sqrt(w2 / fan_in) w, b = sqrt(b2) b' with w, b' standard normal.
        dtype: of the computation; by default that of the data.
        compile: whether the recursion runs as compiled code: on a CPU as generated C, which stays
            in cache and takes a second or two to compile, once for all kernels of the same form;
            else by `torch.compile`. "auto" compiles where an estimate of the time to come says that
            it pays. Without a C compiler the kernel is evaluated eagerly, with a warning.
        output: which tensor of what the module returns, where it returns several: a place in a
            tuple, a key or attribute, or a function of what is returned.
        dropout: whether dropout acts, as in training (the masks of two examples are independent);
            everything else is in evaluation mode.
        numerical: "sample" estimates from samples what has no closed form (max-pooling, softmax,
            gates that share weights, ...); None refuses such operations by name. What has a closed
            form is exact in both cases.
        samples: their number.
        seed: equal seeds give equal samples.
        memory: bytes that a sampled kernel may take, besides the module, the data and the result.
            Exact kernels keep to 2 GiB by tiles.
        scratch: a folder for what a sampled kernel cannot hold in so much memory: samples are joint
            over all examples, so that this grows with the square of their number. By default the
            system's folder for temporary files. Nothing stays there. What does not fit is refused
            before the work, as it is on a GPU and under automatic differentiation, where nothing
            goes to files.

    Raises:
        InvalidInput: bad example data, or unusable `init` or `parametrization`.
        UnsupportedOperation: an operation without a rule, or whose limit is not deterministic.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Examples,
        *,
        init: Init | str = "module",
        parametrization: Parametrization = "standard",
        dtype: torch.dtype | None = None,
        compile: bool | Literal["auto"] = "auto",
        output: Output = None,
        dropout: bool = False,
        numerical: Literal["sample"] | None = None,
        samples: int = 4096,
        seed: int = 0,
        memory: float = MEMORY_BUDGET,
        scratch: str | Path | None = None,
    ) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidInput(f"dtype is {dtype}; kernels need a floating-point type.")
        if numerical not in (None, "sample"):
            raise InvalidInput(f'numerical is {numerical!r}; it can be None or "sample".')
        estimation.check(samples, seed)
        if scratch is not None and not Path(scratch).is_dir():
            raise InvalidInput(f"scratch={str(scratch)!r} is not a folder.")
        self.program: Program = capture(
            model, example, output, dropout=dropout, select_early=not dropout
        )
        self.parametrization = parametrization
        self.dtype = dtype
        self._example = examples.dense(example)
        self.samples = samples
        self.seed = seed
        self.memory = tiles.budget(memory)
        self.scratch = Path(tempfile.gettempdir() if scratch is None else scratch)
        parameters = module_parameters(model, init, parametrization)
        self._lowering = Lowering(self.program, parameters, sample=numerical == "sample")
        positions = self.program.atoms(self.program.output, "position")
        self._evaluation = Evaluation(self._lower_output(), positions, self.program, compile)

    def _lower_output(self) -> Value:
        node = self.program.output
        if self.program.nature[node] != "random":
            raise InvalidInput("the output does not depend on any weight: it has no limit kernel.")
        refuse_mixing(self._lowering)
        refuse_varying_factors(self._lowering)
        for statistic, nature in self.program.nature.items():
            if nature == "statistic" and any(map(self._lowering.random, statistic.all_input_nodes)):
                self._statistic_pieces(statistic)
        return self._lowering.value(node)

    @property
    def sampled(self) -> bool:
        """Whether something in this network is estimated from samples."""
        return self._lowering.sampled

    def nngp(self, x1: Examples, x2: Examples | None = None) -> Tensor:
        """E[f(x) f(x')], shape `(n1, n2)`, or `(n1, n2, *P, *P)` with position axes P.

        Args:
            x1: n1 examples.
            x2: n2 examples; None means the symmetric Gram matrix of `x1`.
        """
        return self.pair(x1, x2).nngp

    def ntk(self, x1: Examples, x2: Examples | None = None) -> Tensor:
        """The NTK of one output, with the shape of `nngp`."""
        return self.pair(x1, x2).ntk

    def pair(self, x1: Examples, x2: Examples | None = None) -> KernelPair:
        """NNGP and NTK in one pass (their means over samples, where something is sampled)."""
        if self.sampled:
            return self.estimate(x1, x2).pair
        rows = self._arranged(x1, "x1")
        columns = None if x2 is None else self._arranged(x2, "x2")
        try:
            return self._exact(rows, columns)
        except NeedsSamples as error:
            self._go_over_to_samples(error)
        return self.estimate(x1, x2).pair

    def _exact(self, x1: Examples, x2: Examples | None) -> KernelPair:
        """Both kernels, of so many examples at a time that their sides fit into memory."""
        first, second = x1, x1 if x2 is None else x2
        count, symmetric = (examples.count(first), examples.count(second)), x2 is None
        plan = tiles.plan(*count, self._examples_per_side(first), symmetric=symmetric)
        whole: list[Tensor] = []
        rows: Side | None = None
        for tile in plan:
            begins = tile.columns.start == plan[0].columns.start or tile.rows == tile.columns
            if rows is None or begins:
                if rows is not None:
                    rows.clear()
                rows = self._side(examples.take(first, tile.rows))
            same = symmetric and tile.rows == tile.columns
            columns = rows if same else self._side(examples.take(second, tile.columns))
            pair = self._evaluation.pair(rows, columns, symmetric=same)
            if len(plan) == 1:
                return pair
            if columns is not rows:
                columns.clear()
            if not whole:
                whole = [kernel.new_empty(*count, *kernel.shape[2:]) for kernel in pair]
            for kernel, block in zip(whole, pair, strict=True):
                tiles.fill(kernel, tile, block, symmetric=symmetric)
        return KernelPair(*whole)

    def _examples_per_side(self, x: Examples) -> int:
        @cache
        def one() -> Side:
            largest = examples.largest(x)
            return self._side(examples.take(x, slice(largest, largest + 1)))

        return examples_per_side(self._lowering.values, one)

    def _exact_diagonal(self, x: Examples) -> KernelPair:
        """The same of the diagonal."""
        size, count = self._examples_per_side(x), examples.count(x)
        parts = [examples.take(x, slice(i, i + size)) for i in range(0, count, size)]
        found = []
        for part in parts:
            side = self._side(part)
            found.append(self._evaluation.diagonal(side))
            side.clear()
        return KernelPair(*(torch.cat(kernels) for kernels in zip(*found, strict=True)))

    def _go_over_to_samples(self, error: NeedsSamples) -> None:
        """That a covariance has no closed form may show only when it is asked for."""
        if not self._lowering.sample:
            raise error
        self._lowering.sampled = True

    def estimate(self, x1: Examples, x2: Examples | None = None) -> Estimate:
        """Both kernels with the standard errors of their entries, which are zero if exact.

        The samples are those of all of `x1` and `x2` together. They take room and time that grow
        with the square and the cube of examples times positions.
        """
        if not self.sampled:
            nngp, ntk = self.pair(x1, x2)
        if not self.sampled:
            return Estimate(nngp, ntk, torch.zeros_like(nngp), torch.zeros_like(ntk))
        first = self._arranged(x1, "x1")
        joint = first if x2 is None else examples.concatenate(first, self._arranged(x2, "x2"))
        dtype = self.dtype or _floating_dtype(joint)
        count = examples.count(first)
        average = estimation.average(self._sampled_pairs(joint, count, symmetric=x2 is None))
        return Estimate(*(kernel.to(dtype) for kernel in average))

    def _sampled_pairs(self, x: Examples, count: int, *, symmetric: bool) -> Iterator[KernelPair]:
        """For each group of samples, the kernels of the first `count` examples with themselves, or
        else with the others.
        """
        columns = slice(0 if symmetric else count, examples.count(x))
        for whole in self._by_groups(x, self._evaluation.of_samples):
            yield KernelPair(*(kernel[:count, columns] for kernel in whole))

    def _by_groups(
        self, x: Examples, evaluate: Callable[[Side], KernelPair]
    ) -> Iterator[KernelPair]:
        """What `evaluate` makes of a side with each group of samples, after a rehearsal."""
        groups = estimation.groups(self.samples, self.seed)
        plan = planned(
            lambda count: self._sampling_plan(x, count, groups[0].samples, evaluate),
            examples.count(x),
        )
        side: Side | None = None
        with tiles.progress("kernel, by samples", len(groups)) as advance:
            for sampling in groups:
                side = self._new_side(x, torch.float64, sampling, side, plan)
                yield evaluate(side)
                side.release()
                advance()

    def _sampling_plan(
        self, x: Examples, count: int, samples: int, evaluate: Callable[[Side], KernelPair]
    ) -> SamplingPlan:
        """What may be forgotten on the way for so many examples, by a rehearsal with the first.

        Files are used where memory is too small.

        Raises:
            DoesNotFit: there is not enough room.
        """
        in_memory = SamplingPlan(self.memory, count, samples)
        try:
            return self._rehearsed(in_memory, x, evaluate)
        except DoesNotFit:
            if self._in_memory_only(x):
                raise
        scratch = Scratch(self.scratch, least=self.memory // 32, pages=self.memory // 8)
        return self._rehearsed(replace(in_memory, scratch=scratch), x, evaluate)

    def _in_memory_only(self, x: Examples) -> bool:
        """Whether derivatives are asked for, or the data lie elsewhere."""
        leaves = examples.tensors(x)
        smooth = self._lowering.parameters.smooth() or any(t.requires_grad for t in leaves)
        return (torch.is_grad_enabled() and smooth) or any(t.device.type != "cpu" for t in leaves)

    def _rehearsed(
        self, plan: SamplingPlan, x: Examples, evaluate: Callable[[Side], KernelPair]
    ) -> SamplingPlan:
        record = Record(self.memory // 4)
        rehearsal = replace(plan, record=record)
        one, few = examples.take(x, slice(0, 1)), Sampling(REHEARSED, self.seed)
        side = self._new_side(one, torch.float64, few, plan=rehearsal)
        with torch.no_grad():
            evaluate(side)
        correlated = frozenset(side.draws.correlated)
        side.release()
        # What is exact is computed for each group where all groups cannot have it in common.
        for keep, scratch in itertools.product((True, False), plan.scratch.finer()):
            uses, plan = record.uses(correlated, keep=keep), replace(plan, scratch=scratch)
            more, takes = plan.samples / REHEARSED, scratch.takes
            working = Room(self.memory // 8 + scratch.pages)  # tiles and some samples at a time
            needed = record.peak(uses, plan.examples, more, takes).plus(working)
            if plan.fits(needed):
                break
        plan.refuse(needed, "covariances and samples of")
        return replace(plan, uses=uses, correlated=correlated, needed=needed)

    def diagonal(self, x: Examples) -> KernelPair:
        """K(x_i, x_i) of both kernels, shape `(n,)` or `(n, *P)`, by a recursion of its own."""
        if not self.sampled:
            try:
                return self._exact_diagonal(self._arranged(x, "x"))
            except NeedsSamples as error:
                self._go_over_to_samples(error)
        x = self._arranged(x, "x")
        dtype = self.dtype or _floating_dtype(x)
        mean = estimation.average(self._sampled_diagonals(x)).pair
        return KernelPair(*(kernel.to(dtype) for kernel in mean))

    def _sampled_diagonals(self, x: Examples) -> Iterator[KernelPair]:
        yield from self._by_groups(x, self._evaluation.diagonal)

    def _side(self, x: Examples) -> Side:
        return self._new_side(x, self.dtype or _floating_dtype(x))

    def _new_side(
        self,
        x: Examples,
        dtype: torch.dtype,
        sampling: Sampling | None = None,
        like: Side | None = None,
        plan: SamplingPlan | None = None,
    ) -> Side:
        side = Side(self.program, x, dtype, self._statistic_pieces, sampling, like, plan)
        if like is None:
            last = examples.take(x, slice(side.count - 1, side.count))
            alone = Side(self.program, last, dtype, self._statistic_pieces, sampling)
            check_independence(side, alone)
        return side

    def _arranged(self, x: Examples, name: str) -> Examples:
        x = examples.dense(x)
        examples.check(x, name, like=self._example)
        return examples.arrange(x, self._example)

    def _statistic_pieces(self, node: fx.Node) -> tuple[tuple[float, Value], ...]:
        return self._lowering.pieces(cast(fx.Node, node.args[0]), frozenset())


def _floating_dtype(x: Examples) -> torch.dtype:
    """The widest floating-point type among the data; integer data alone are computed in float32."""
    dtype = torch.float32
    floating = [t.dtype for t in examples.tensors(x) if t.is_floating_point()]
    for candidate in floating[:1]:
        dtype = candidate
    for candidate in floating[1:]:
        dtype = torch.promote_types(dtype, candidate)
    return dtype
