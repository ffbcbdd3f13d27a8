"""A module as a function of its parameters and a batch; calling it changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.empirical.cudnn import exact_cudnn
from tangency.empirical.outputs import Tail
from tangency.empirical.randomness import preserved
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.program.outputs import listed

__all__ = [
    "attributes_kept",
    "call",
    "detached",
    "dictionaries",
    "differentiable_copy",
    "evaluate",
    "named",
    "outputs",
    "refuse_training_effects",
    "trainable",
    "undisturbed",
    "unwrapped",
    "user_data",
    "user_module",
]


def evaluate(
    model: nn.Module, x: Examples, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Outputs of `model` on the batch `x`, shape (n, out): trailing dimensions are flattened.

    `parameters` replace the module's own, by name. Buffers are replaced by copies, so that a
    forward pass that updates them leaves the module as it was.

    Raises:
        InvalidInput: the module returns something other than one real floating-point tensor with
            one row per example.
    """
    return outputs(model, x, parameters).reshape(examples.count(x), -1)


def outputs(
    model: nn.Module, x: Examples, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """As `evaluate`, in the shape (n, *rest) that the module gives them. Raises as `evaluate`."""
    output = call(model, x, parameters)
    name = type(user_module(model)).__name__
    if not isinstance(output, Tensor):
        raise InvalidInput(
            f"{name} returns a {type(output).__name__}, but a kernel needs one tensor. "
            f"{listed(output)}choose one with a function of what the module returns, e.g. "
            "output=lambda out: out[0]."
        )
    if not output.is_floating_point():
        raise InvalidInput(
            f"{name} returns {output.dtype}, which has no gradient: "
            "return the real-valued output before argmax or rounding."
        )
    n = examples.count(x)
    # A module that squeezes its output returns a scalar for a single example.
    if n > 1 and (output.dim() == 0 or output.shape[0] != n):
        raise InvalidInput(
            f"{name} returns shape {tuple(output.shape)} for {n} examples: "
            "it must return one row per example."
        )
    return output


def call(model: nn.Module, x: Examples, parameters: Mapping[str, Tensor] | None = None) -> object:
    """Whatever `model` returns on the batch `x`; its buffers and attributes stay as they are."""
    state: dict[str, Tensor] = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state.update(parameters or {})
    with attributes_kept(model):
        return _returned(model, state, x)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back what the modules hold under their names: counters, caches, computed weights.

    A value that a pass under `torch.func` or `torch.export` leaves there is of no use afterwards.
    """
    kept = []
    for module in model.modules():
        held = vars(module)
        registered = (held.get(key) for key in ("_parameters", "_buffers", "_modules"))
        kept += [(d, dict(d)) for d in (held, *registered) if isinstance(d, dict)]
    try:
        yield
    finally:
        for held, before in kept:
            if held.keys() != before.keys() or any(held[k] is not v for k, v in before.items()):
                held.clear()
                held.update(before)


def unwrapped(model: object) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Raises:
        InvalidInput: `model` is no module, or holds a TorchScript one.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidInput(
                f"{f'module {name!r}' if name else 'model'} is a TorchScript module, which cannot "
                "be called with other parameters: pass the Python module that it was made from."
            )
    inner: object = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def user_module(model: nn.Module) -> nn.Module:
    """The user's own module inside the tails that the choice of an output puts behind it."""
    return user_module(model.model) if isinstance(model, Tail) else model


def user_data(model: nn.Module, x: Examples) -> Examples:
    """What of the batch `x` for `model` the user's own module is called on."""
    return user_data(model.model, model.data(x)) if isinstance(model, Tail) else x


def _returned(model: nn.Module, state: dict[str, Tensor], x: Examples) -> object:
    """What `model` returns on `x` with `state` for its parameters and buffers."""
    if isinstance(model, Tail):
        return model.finish(_returned(model.model, state, model.data(x)), x)
    args, kwargs = examples.arguments(x)
    returned: object = functional_call(model, state, args, kwargs)
    return returned


def named(model: nn.Module, patterns: str | Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Parameters of `model` that a pattern matches, by qualified name (all without patterns).

    Patterns are those of `fnmatch` ("*.weight"). A tensor that has several names is listed under
    its first one, and matched by any of them.

    Raises:
        InvalidInput: a pattern matches nothing, or there are no patterns or no parameters.
    """
    parameters = dict(model.named_parameters())
    if any(nn.parameter.is_lazy(parameter) for parameter in parameters.values()):
        raise InvalidInput("the module has lazy parameters without a shape: run it once on data.")
    if patterns is None:
        return parameters
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise InvalidInput("parameters is an empty list: give name patterns, or None for all.")
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    known = [name for names in aliases.values() for name in names]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InvalidInput(
                f"parameters={pattern!r} matches no parameter; available: {', '.join(known)}."
            )
    return {
        name: parameter
        for name, parameter in parameters.items()
        if any(fnmatchcase(alias, p) for alias in aliases[id(parameter)] for p in wanted)
    }


def trainable(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `parameters` that require a gradient: frozen ones have no part in the NTK.

    Raises:
        InvalidInput: all are frozen.
    """
    free = {name: p for name, p in parameters.items() if p.requires_grad}
    if not free:
        raise InvalidInput(
            f"there is no parameter to differentiate: of {len(parameters)} selected, all are "
            "frozen (requires_grad=False) and frozen parameters do not count in the NTK."
        )
    return free


def refuse_training_effects(model: nn.Module) -> None:
    """Refuse modules whose training mode couples the examples or makes the outputs random.

    Raises:
        InvalidInput: names the submodule and the way out.
    """
    for name, module in model.named_modules():
        where = f"module '{name}' ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InvalidInput(
                f"{where} has no running statistics, so it couples the examples of a batch and no "
                "example has a kernel of its own: use track_running_stats=True, or another norm."
            )
        if module.training and isinstance(module, _BatchNorm):
            raise InvalidInput(
                f"{where} is in training mode and couples the examples of a batch: "
                "call model.eval() first."
            )
        if module.training and _drops(module):
            raise InvalidInput(
                f"{where} is in training mode and makes the outputs random: "
                "call model.eval() first."
            )


def _drops(module: nn.Module) -> bool:
    """Whether `module` draws random numbers in training mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return isinstance(module, nn.RReLU)


def detached(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values without the module's own autograd identity (and hooks)."""
    return {name: parameter.detach() for name, parameter in parameters.items()}


def differentiable_copy(x: Examples) -> Examples:
    """`x` detached, and usable by autograd where it was made under inference mode."""
    return pytree.tree_map(
        lambda leaf: (
            (leaf.clone() if leaf.is_inference() else leaf.detach())
            if isinstance(leaf, Tensor)
            else leaf
        ),
        x,
    )


@contextmanager
def undisturbed(model: nn.Module, x: Examples) -> Iterator[None]:
    """With autograd on, exactly; the state of random generators is put back afterwards."""
    tensors = (*examples.tensors(x), *model.parameters(), *model.buffers())
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    with (
        preserved(sorted(devices, key=str)),
        exact_cudnn(model) if devices else nullcontext(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def dictionaries(x: Examples) -> Examples:
    """`x` with plain dictionaries for other mappings (the `BatchEncoding` of a tokenizer)."""
    if isinstance(x, Mapping) and not isinstance(x, dict):
        return {key: dictionaries(value) for key, value in x.items()}
    if type(x) is tuple:
        return tuple(map(dictionaries, x))
    if type(x) is list:
        return list(map(dictionaries, x))
    return x
