"""`EmpiricalKernel`: the kernels of a module at its present parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from tangency import examples, tiles
from tangency.empirical import verification
from tangency.empirical.assembly import Blocks, assemble, assemble_diagonal
from tangency.empirical.conjugate import conjugate_kernel
from tangency.empirical.costs import Layout
from tangency.empirical.features import Features, nngp_block, ntk_block, ntk_blocks
from tangency.empirical.function import (
    differentiable_copy,
    undisturbed,
    unwrapped,
    user_data,
)
from tangency.empirical.matrix_free import products
from tangency.empirical.matrix_free.operator import KernelOperator
from tangency.empirical.outputs import Output, described
from tangency.empirical.planning import Plan, plan
from tangency.empirical.random_features.projections import random_features
from tangency.empirical.schedule import Schedule, schedule, schedule_diagonal
from tangency.empirical.subject import Prepared, Subject, checked
from tangency.empirical.verification import Verification
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.kernel_pair import KernelPair

__all__ = ["EmpiricalKernel"]

_Block = Callable[[Features, Features, Layout], Tensor]


class EmpiricalKernel:
    """Finite-width kernels of `model` at the parameters that it has when a method is called.

    NTK: Theta[i, j, a, b] = sum over parameters of df_a(x_i)/dtheta df_b(x'_j)/dtheta
    (Jacot, Gabriel and Hongler, 2018, eq. 8), exact up to rounding for every module that runs and
    differentiates. NNGP: f_a(x_i) f_b(x'_j), the one-network estimate whose mean over
    initialisations (and outputs) is the NNGP kernel at infinite width.

    Outputs of shape (n, *rest) are flattened to (n, out); (n,) means out = 1. The function of
    example i is what the module returns for `x[i : i + 1]`; modules that couple the examples of a
    batch are refused. Data are a tensor, or a tuple or list (positional arguments) or a mapping
    (keyword arguments) of tensors with a common leading size n.

    The recorded graph is run once forward and once backward for each output, down to the sites at
    which parameters meet data. Gradients stay in factors there, (input, cotangent), and are
    contracted by Gram matrices or written out, whichever is cheaper (`plan`); parameters without a
    site take per-example Jacobians by `torch.func`, or one example at a time where that has no
    rule. Each path is held against plain autograd on three of the examples first.
    Large sets are computed in tiles that keep gradients and intermediates within `memory` bytes.

    The module stays as it was: mode, `.grad`, buffers, hooks, `requires_grad` and the state of the
    random generator. Works under `torch.no_grad` and `torch.inference_mode` (a module *made* under
    inference mode cannot be differentiated, and is refused). Results carry no gradient and have
    the dtype of the outputs; half precision is accumulated in float32.

    Args:
        model: any module that returns real tensors with one row per example; those of
            `torch.compile`, `DataParallel` and `DistributedDataParallel` are looked through.
        output: what the kernel is of.
            "full" gives kernels (n1, n2, out, out), "diagonal" (n1, n2, out), "trace" the mean
            over outputs (n1, n2), an integer that one output (n1, n2).
            A function of what the module returns chooses a tensor (n, *rest) of it, of which the
            mean over outputs is taken: `lambda out: out.logits[:, -1]`.
            A function of outputs and targets is a loss (`F.cross_entropy`): the kernel (n1, n2)
            holds the inner products of the gradients of the losses of single examples, which it is
            given one at a time, with a leading size of one; data are pairs (inputs, targets).
            A pair (function, any of the others) is both: `(lambda out: out.logits, "full")`,
            `(lambda out: out.logits, F.cross_entropy)`.
        parameters: name patterns (`fnmatch`, one or several) of the parameters that the NTK is
            summed over; None for all. Frozen parameters (requires_grad=False) never count.
        memory: bytes that the computation may take, besides the data, the module and the kernel
            matrix itself.

    Raises:
        InvalidInput: `model` is no such module, `output` none of these, or a pattern matches no
            parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        output: Output = "trace",
        parameters: str | Sequence[str] | None = None,
        memory: float = 2**31,
    ) -> None:
        self._subject = Subject(unwrapped(model), output, parameters)
        self._model, self._output, self._parameters = model, output, parameters
        self.memory = tiles.budget(memory)

    def __repr__(self) -> str:
        return (
            f"EmpiricalKernel({type(self.model).__name__}, output={described(self.output)}, "
            f"parameters={self.parameters!r})"
        )

    @property
    def model(self) -> nn.Module:
        """The module, as it was given."""
        return self._model

    @property
    def output(self) -> Output:
        """What the kernel is of."""
        return self._output

    @property
    def parameters(self) -> str | Sequence[str] | None:
        """Name patterns of the parameters that the NTK is summed over; None for all."""
        return self._parameters

    def ntk(self, x1: Examples, x2: Examples | None = None) -> Tensor:
        """NTK between `x1` and `x2`; the exactly symmetric Gram matrix of `x1` without `x2`.

        Returns (n1, n2), or with further dimensions as `output` says.

        Raises:
            InvalidInput: data that are empty, not finite or of the wrong shape, a module that does
                not run on them, is random, couples examples or has no trainable parameter.
        """
        return self._gram(x1, x2, {"ntk": ntk_block})["ntk"]

    def nngp(self, x1: Examples, x2: Examples | None = None) -> Tensor:
        """Products of outputs, in the layout of `ntk`. Raises as `ntk`."""
        return self._gram(x1, x2, {"nngp": nngp_block})["nngp"]

    def pair(self, x1: Examples, x2: Examples | None = None) -> KernelPair:
        """Both kernels in one pass. Raises as `ntk`."""
        return KernelPair(**self._gram(x1, x2, _BOTH))

    def diagonal(self, x: Examples) -> KernelPair:
        """Both kernels of each example with itself: (n,), (n, out) or (n, out, out).

        Raises as `ntk`.
        """
        with self._subject.prepared(x, gradients=True) as prepared:
            order = schedule_diagonal(prepared.work, examples.count(prepared.x1), self.memory)
            return KernelPair(**assemble_diagonal(prepared, _named(_BOTH), order))

    def plan(self, x1: Examples, x2: Examples | None = None) -> Plan:
        """How `ntk(x1, x2)` will be computed: the path, multiply-adds and bytes of every parameter
        and why, the tiles, and an estimate of memory and time. Raises as `ntk`.
        """
        with self._subject.prepared(x1, x2, gradients=True) as prepared:
            return plan(prepared, self._schedule(prepared))

    def by_parameter(self, x1: Examples, x2: Examples | None = None) -> dict[str, Tensor]:
        """The NTK as a sum: parameter -> its part, in the layout of `ntk`. Raises as `ntk`.

        A tensor that has several names stands under its first one, with all its uses and the
        products between them.
        """
        with self._subject.prepared(x1, x2, gradients=True) as prepared:
            found = self._assembled(prepared, ntk_blocks)
            # In the order of the module, whatever path serves which parameter.
            return {name: found[name] for name in prepared.engine.parameters if name in found}

    def by_layer(
        self, x1: Examples, x2: Examples | None = None, *, depth: int | None = None
    ) -> dict[str, Tensor]:
        """The NTK as a sum: module -> the part of its parameters, in the layout of `ntk`.

        Parameters that the model itself holds stand under the empty path.

        Args:
            x1: examples.
            x2: other examples.
            depth: number of leading parts of a module's path that tell modules apart
                (`depth=1`: the children of the model); None for the modules that hold parameters.

        Raises:
            InvalidInput: as `ntk`, or `depth` is not positive.
        """
        if depth is not None and depth < 1:
            raise InvalidInput(f"depth={depth} must be a positive number of parts of a path.")
        layers: dict[str, Tensor] = {}
        for name, kernel in self.by_parameter(x1, x2).items():
            layer = ".".join(name.split(".")[:-1][:depth])
            layers[layer] = layers[layer] + kernel if layer in layers else kernel
        return layers

    def conjugate(
        self, x1: Examples, x2: Examples | None = None, *, layer: str | None = None
    ) -> Tensor:
        """Conjugate kernel (Fan and Wang, 2020): h(x1) . h(x2) / width, shape (n1, n2).

        h is the last hidden layer: what the linear or convolutional layer that is called last is
        given, or the module that is named `layer` (at its last call, as its first argument). Of
        positions (tokens, pixels) in h the mean is taken too. The NNGP kernel of a linear output
        layer with weights of variance w2 / width is w2 times this kernel in the limit of infinite
        width. Data are as for `ntk`; `output` and `parameters` play no part.

        Raises:
            InvalidInput: data or a module as in `ntk`; no layer of that name, or none is called.
        """
        with self._subject.prepared(x1, x2, gradients=False) as prepared:
            first, second, subject = prepared.x1, prepared.x2, self._subject
            function = subject.function
            rows = user_data(function, first)
            columns = None if second is None else user_data(function, second)
            together = prepared.engine.trace is not None  # such a graph has no branches on data
            return conjugate_kernel(subject.model, rows, columns, layer, together=together)

    def operator(self, x1: Examples, x2: Examples | None = None) -> KernelOperator:
        """The NTK as an exact linear operator that never writes the matrix down, with `@`.

        Shape (n1, n2), or (n1 * out, n2 * out) with `output="full"`, laid out example by example;
        symmetric without `x2`. See `KernelOperator`.

        Raises:
            InvalidInput: as `ntk`, and for `output="diagonal"`, which is not one matrix.
        """
        layout = self._subject.choice.layout
        if layout == "diagonal":
            raise InvalidInput(
                "output='diagonal' is a stack of matrices, one for each output, and not one "
                "operator: make one for an output at a time, EmpiricalKernel(model, output=0), or "
                "choose output='trace', their mean."
            )
        with self._subject.prepared(x1, x2, gradients=True) as prepared:
            first, second, subject = prepared.x1, prepared.x2, self._subject
            function, parameters = subject.function, subject.parameters
            return KernelOperator(
                products.prepare(
                    function,
                    parameters,
                    first,
                    second,
                    # Without a graph nothing tells whether the module keeps the examples apart.
                    alone=prepared.engine.trace is None,
                    rounding=prepared.engine.rounding,
                    memory=self.memory,
                ),
                first,
                second,
                prepared.cotangents,
                mean=layout == "trace",
                diagonal=lambda: self.diagonal(x1).ntk,
            )

    def features(self, x: Examples, dim: int, seed: int = 0) -> Tensor:
        """Random features phi(x), whose inner products are the NTK in the mean over seeds.

        Shape (n, dim), so that E[phi(x) @ phi(x').T] is `ntk(x, x')`; (n, out, dim) with
        output="full", where E[phi(x_i)_a . phi(x'_j)_b] = Theta[i, j, a, b], and "diagonal". The
        same seed gives the same projection for all data, batches and devices, so that features of
        different sets belong together, and a linear model on features stands for kernel regression.

        Weights are projected from both sides, (R . g)(S . a) for a cotangent g and an input a at
        every site, and their gradients are never written out (TRAK, Park et al., 2023, projects
        gradients that are). Written out and then projected are gradients that the kernel has in no
        factors (scales, biases, what no site serves), of views that are no block of their
        parameter's matrix, and of channels in groups where that is smaller than the factors.

        An inner product deviates by at most sqrt(8 Theta_ii Theta_jj / dim) (standard deviation),
        and hardly by more than sqrt((Theta_ii Theta_jj + Theta_ij^2) / dim), as for dense Gaussian
        projections, where many parameters share in the kernel. For a Gram matrix the mean of
        |phi phi^T - Theta|_F^2 is at most 8 tr(Theta)^2 / dim, so that the error relative to
        |Theta|_F is sqrt(8 / dim) tr(Theta) / |Theta|_F: from sqrt(8 / dim), for a kernel of rank
        one, to sqrt(8 n / dim). A parameter's own part is exact where dim is a multiple of its rows
        times its columns (times outputs, for their mean), each rounded up to a power of two.
        `tangency.empirical.random_features.projections` has the variance in closed form.

        Args:
            x: examples.
            dim: number of features, for one output.
            seed: a natural number.

        Raises:
            InvalidInput: as `ntk`, or `dim` is not a positive or `seed` not a natural number.
        """
        _natural("dim", dim, at_least=1)
        _natural("seed", seed, at_least=0)
        with self._subject.prepared(x, gradients=True) as prepared:
            return random_features(prepared, dim=dim, seed=seed, memory=self.memory)

    def verify(self, x: Examples, entries: int = 32, seed: int = 0) -> Verification:
        """Hold the NTK of some of the examples `x` against plain autograd.

        Compared are: `entries` random entries with plain autograd, one pair of examples at a time,
        each alone, with products in float64; the kernel of examples in other batches; the kernel
        computed twice, which must give the same bits; the kernel and its transpose, computed as two
        sets of examples; and the smallest eigenvalue with zero. Deviations are relative to
        sqrt(K_ii K_jj), and 1e-10 is allowed in float64, 1e-4 in float32, 5e-2 in half precision.

        The examples are sqrt(entries) + 2 of `x`, drawn at random. Autograd takes two backward
        passes for an entry, and two for each output with output="trace".

        Returns:
            A report, whose `ok` says whether all is within rounding; `print` shows a table.

        Raises:
            InvalidInput: as `ntk`, or `entries` is no positive integer.
        """
        x = checked(x, "x")
        subject = self._subject
        parameters = list(subject.parameters.values())
        with undisturbed(subject.model, x):
            return verification.verify(
                self.ntk,
                subject.outputs,
                parameters,
                differentiable_copy(x),
                model=type(self.model).__name__,
                layout=subject.choice.layout,
                entries=entries,
                seed=seed,
            )

    def _gram(
        self, x1: Examples, x2: Examples | None, blocks: Mapping[str, _Block]
    ) -> dict[str, Tensor]:
        gradients = ntk_block in blocks.values()
        with self._subject.prepared(x1, x2, gradients=gradients) as prepared:
            return self._assembled(prepared, _named(blocks))

    def _assembled(self, prepared: Prepared, blocks: Blocks) -> dict[str, Tensor]:
        order = self._schedule(prepared)
        label = "empirical kernel"
        if order.cost(prepared.work) > _LONG:
            label += f", about {plan(prepared, order).duration}"
        return assemble(prepared, blocks, order, label)

    def _schedule(self, prepared: Prepared) -> Schedule:
        x1, x2 = prepared.x1, prepared.x2
        n1, n2 = examples.count(x1), examples.count(x1 if x2 is None else x2)
        return schedule(prepared.work, n1, n2, symmetric=x2 is None, budget=self.memory)


_LONG = 1e12
"""Multiply-adds from which on the time is estimated before the work begins: some ten seconds."""

_BOTH: Mapping[str, _Block] = {"nngp": nngp_block, "ntk": ntk_block}


def _named(blocks: Mapping[str, _Block]) -> Blocks:
    """Several blocks at once."""

    def all_blocks(rows: Features, columns: Features, layout: Layout) -> dict[str, Tensor]:
        return {name: block(rows, columns, layout) for name, block in blocks.items()}

    return all_blocks


def _natural(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InvalidInput(f"{name}={value!r} must be an integer, at least {at_least}.")
