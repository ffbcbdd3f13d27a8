"""The computation of a module as a functional graph of ATen operations, by `torch.export`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import UnsupportedOperatorException
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.errors import InvalidInput, TangencyError, UnsupportedOperation
from tangency.examples import Examples
from tangency.program import sparse
from tangency.program.blocks import first_block, inline_blocks
from tangency.program.decompositions import decompositions
from tangency.program.functional import drop_inactive_dropouts, make_functional
from tangency.program.outputs import Output, select_output
from tangency.program.silence import failures_unprinted
from tangency.program.simplify import simplify
from tangency.program.sparse import SparseAsDense, dense_tensors

__all__ = ["Trace", "evaluation_mode", "location", "operation", "trace"]


@dataclass(frozen=True)
class Trace:
    """A module's computation, node by node.

    Attributes:
        graph: functional ATen graph; operations such as `linear` are single nodes.
        inputs: placeholders of the data, in the order of the flattened pytree of examples.
        parameters: placeholder -> qualified name; a tensor with several names has the first one.
        constants: placeholder -> buffer or constant tensor (the module's own, not a copy).
        output: the node that the module returns.
        values: placeholder -> present value of a parameter (the module's own, not a copy).
    """

    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    parameters: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    output: fx.Node
    values: dict[fx.Node, Tensor] = field(default_factory=dict)


def operation(node: fx.Node) -> str:
    """The node's operation, e.g. `aten.linear.default`."""
    return str(node.target) if node.op == "call_function" else node.op


_NOT_THE_USERS = ("/torch/", __file__, sparse.__file__)
"""Source files whose lines say nothing to the reader of an error."""


def _module_path(node: fx.Node) -> str:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return _own_name(stack[-1]) if stack and not stack[-1].startswith("_") else ""


def _source(node: fx.Node) -> str:
    """The innermost user line of `node`: torch's own frames are of no use to the reader."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    frames = [
        (line, code) for line, code in itertools.pairwise([*lines, ""]) if line.startswith('File "')
    ]
    own = [frame for frame in frames if not any(path in frame[0] for path in _NOT_THE_USERS)]
    return ": ".join((own or frames)[-1]) if frames else "unknown source line"


def location(node: fx.Node) -> str:
    """Operation, module path and source line of `node`, for error messages."""
    path = _module_path(node)
    where = f"module '{path}'" if path else "the top module"
    return f"{operation(node)} in {where} ({_source(node)})"


@contextmanager
def evaluation_mode(model: nn.Module, dropout: bool = False) -> Iterator[None]:
    """Put every submodule in evaluation mode and each one back as it was.

    With `dropout` all but normalisations with running statistics are in training mode, so that
    dropout is active wherever the module applies it.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = dropout and not isinstance(module, _NormBase)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def trace(model: nn.Module, example: Examples, output: Output = None) -> Trace:
    """Record what `model` computes on a batch like `example`, with the batch size left free.

    The module is recorded in the mode (training or evaluation) that it is in, and left unchanged.

    Args:
        model: the module.
        example: a batch of examples.
        output: which tensor of what the module returns: a place in a tuple, a key or attribute, or
            a function of what is returned; needed where it is not one tensor.

    Raises:
        InvalidInput: `example` is not a batch of finite tensors, or `output` does not choose one
            tensor with one row per example.
        UnsupportedOperation: `torch.export` cannot record the module, or it fixes the batch size.
    """
    example = examples.dense(example)
    examples.check(example, "example")
    with dense_tensors(model) as any_sparse:
        return _trace(model, _two_examples(example), output, any_sparse)


def _trace(model: nn.Module, batch: Examples, output: Output, any_sparse: bool) -> Trace:
    exported = _export(model, batch, output, any_sparse)
    nodes = {node.name: node for node in exported.graph.nodes}
    names = _canonical_names(model)
    inputs, parameters, constants, values = [], {}, {}, {}
    for spec in exported.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.PARAMETER:
            target = _own_name(str(spec.target))
            parameters[node] = names.get(id(_attribute(model, target)), target)
            values[node] = _constant(exported, model, str(spec.target))
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        else:
            constants[node] = _constant(exported, model, str(spec.target))
    returned = _single_output(exported)
    _check_batch(inputs, returned)
    return Trace(exported.graph, tuple(inputs), parameters, constants, returned, values)


def _two_examples(example: Examples) -> Examples:
    """A batch of exactly two: export specialises a batch of one, and more brings nothing."""
    first = examples.take(example, slice(0, 2))
    return first if examples.count(first) == 2 else examples.concatenate(first, first)


class _Call(nn.Module):
    """A module that is called in any way and returns one tensor of what the one inside returns."""

    def __init__(self, model: nn.Module, output: Output, densely: bool) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.densely = densely

    def forward(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
        with SparseAsDense() if self.densely else nullcontext():
            return select_output(self.model(*args, **kwargs), self.output)


def _own_name(name: str) -> str:
    """A qualified name or module path inside `_Call` as the user knows it."""
    return name.removeprefix("model").removeprefix(".")


def _export(model: nn.Module, batch: Examples, output: Output, densely: bool) -> ExportedProgram:
    """Record a module; `densely` with dense tensors in place of sparse ones."""
    try:
        return _record(_Call(model, output, densely), examples.arguments(batch))
    except TangencyError:
        raise
    except Exception as error:
        about_sparse = "sparse" in str(error).lower()
        unknown = isinstance(error, UnsupportedOperatorException)
        if (about_sparse or unknown) and not densely:  # a tensor that only the forward pass knows
            return _export(model, batch, output, densely=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UnsupportedOperation(
            f"torch.export cannot record {type(model).__name__}: {type(error).__name__}: {reason}\n"
            + (_SPARSE if about_sparse else _ADVICE)
        ) from error


def _record(call: _Call, inputs: tuple[tuple[object, ...], dict[str, object]]) -> ExportedProgram:
    shapes = pytree.tree_map(
        lambda leaf: {0: Dim.AUTO} if isinstance(leaf, Tensor) else None, inputs
    )
    # Where it is installed, opt_einsum plans by the sizes that it sees and fixes the batch.
    plain_einsum = torch.backends.opt_einsum.flags(enabled=False)
    with warnings.catch_warnings(), torch.enable_grad(), plain_einsum:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
        with failures_unprinted():
            exported = torch.export.export(call, inputs, dynamic_shapes=shapes, strict=False)
        return _canonical(exported)


_ADVICE = (
    "Check that model(example) runs on data of this shape; the computation must not branch "
    "on the values of the data (torch.where does without)."
)
_SPARSE = (
    "Sparse matrices are recorded as dense ones, in products, sums and transposes: make the matrix "
    "dense yourself (to_dense()), or sum along the edges with index_add."
)


def _canonical(exported: ExportedProgram) -> ExportedProgram:
    """A functional graph of the operations that rules know."""
    _check_transformations(exported)
    inline_blocks(exported, _parameter_nodes(exported))
    _check_flat(exported)
    graph = exported.graph
    if any(map(_is_unusual, graph.nodes)) or not make_functional(graph):
        drop_inactive_dropouts(graph)
        exported.graph_module.recompile()
        exported = exported.run_decompositions({})
    table = decompositions(exported.graph, _parameter_nodes(exported))
    if table:
        exported.graph_module.recompile()
        exported = exported.run_decompositions(table)
    simplify(exported.graph)
    return exported


_SPELLINGS = frozenset(
    f"aten::{name}"
    for name in ("mT", "adjoint", "swapaxes", "swapdims", "movedim", "narrow", "tensor_split")
)
"""Other spellings of `transpose`, `permute` and `slice`; a decomposition reduces them to these."""


def _is_unusual(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.name in _SPELLINGS


def _parameter_nodes(exported: ExportedProgram) -> list[fx.Node]:
    specs = exported.graph_signature.input_specs
    names = {spec.arg.name for spec in specs if spec.kind is InputKind.PARAMETER}
    return [node for node in exported.graph.nodes if node.name in names]


def _check_flat(exported: ExportedProgram) -> None:
    """Refuse blocks of operations inside a node that cannot be copied into the graph."""
    node = first_block(exported.graph)
    if node is not None:
        raise UnsupportedOperation(
            f"{location(node)} runs a block of operations under its own rules, such as "
            "torch.no_grad() or torch.cond, on values that depend on parameters or data, which no "
            "kernel rule describes. EmpiricalKernel needs no rules."
        )


def _check_transformations(exported: ExportedProgram) -> None:
    """Refuse the steps of `torch.func` in a graph: run one by one, an error between two of them
    would leave every later computation of the process inside a transformation.
    """
    for node in exported.graph.nodes:
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            raise UnsupportedOperation(
                f"{_module_path(node) or 'the module'} calls torch.func (vmap, grad, jvp, ...) in "
                f"its forward pass ({_source(node)}), which is no plain sequence of operations. "
                "EmpiricalKernel needs none."
            )


def _canonical_names(model: nn.Module) -> dict[int, str]:
    """Identity of each parameter -> its first qualified name (tied weights have several)."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _attribute(model: nn.Module, target: str) -> object:
    value: object = model
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def _constant(exported: ExportedProgram, model: nn.Module, target: str) -> Tensor:
    own = _attribute(model, _own_name(target))
    constant = own if isinstance(own, Tensor) else exported.constants[target]
    return constant.detach()


def _single_output(exported: ExportedProgram) -> fx.Node:
    """The node that is returned, and nothing else: updates of buffers are forgotten."""
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    end = next(node for node in exported.graph.nodes if node.op == "output")
    returned = cast("tuple[fx.Node, ...]", end.args[0])
    output = returned[kinds.index(OutputKind.USER_OUTPUT)]
    end.args = ((output,),)
    return output


def _fixed(size: int | torch.SymInt) -> bool:
    """Whether a size is a number: a symbol may have become one during the recording."""
    return isinstance(size, int) or not size.node.expr.free_symbols


def _check_batch(inputs: list[fx.Node], output: fx.Node) -> None:
    for node in inputs:
        value = node.meta["val"]
        if isinstance(value, Tensor) and _fixed(value.shape[0]):
            raise UnsupportedOperation(
                f"the module fixes the batch size of its input to {value.shape[0]}: use "
                "x.shape[0] or -1 (not len(x)) for it in view and reshape, no loop over examples."
            )
    shape = output.meta["val"].shape
    if len(shape) == 0 or _fixed(shape[0]):
        raise InvalidInput(
            f"the module returns a tensor of shape {tuple(shape)}, whose first dimension is not "
            "the batch: it must return one row per example."
        )
