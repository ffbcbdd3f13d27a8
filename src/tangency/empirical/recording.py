"""The traced graph of a module, kept from call to call while the module is the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.empirical.function import attributes_kept
from tangency.errors import TangencyError
from tangency.examples import Examples
from tangency.program.trace import Trace, trace

__all__ = ["Recording", "versions"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Recording:
    """The last trace of one module; recorded anew for other shapes or a changed module."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._key: object = None
        self._trace: Trace | None = None
        self.reason = ""
        """Why the module cannot be recorded, if it cannot."""

    def get(self, x: Examples) -> Trace | None:
        """The graph for batches like `x`; None where `torch.export` cannot record the module."""
        key = self.key(x)
        if key != self._key:
            self.forget()
            try:
                # torch.export replaces lists that modules like nn.LSTM hold.
                with attributes_kept(self._model):
                    self._trace = trace(self._model, x)
            except TangencyError as error:
                # The module has been seen to run on `x`: torch.func computes its kernel as well.
                self._trace = None
                self.reason = str(error).splitlines()[0]
            self._key = key
        return self._trace

    def key(self, x: Examples) -> object:
        """What is equal for equal graphs."""
        return _fingerprint(self._model), _kind(x)

    def forget(self) -> None:
        """Record anew at the next call."""
        self._key, self._trace = None, None


def _kind(x: Examples) -> object:
    """Structure, shapes of one example, dtypes and devices."""
    tensors = tuple((t.shape[1:], t.dtype, t.device) for t in examples.tensors(x))
    plain = tuple(
        leaf if isinstance(leaf, _PLAIN) else id(leaf)
        for leaf in pytree.tree_leaves(x)
        if not isinstance(leaf, Tensor)
    )
    return pytree.tree_structure(x), tensors, plain


def versions(model: nn.Module) -> object:
    """What changes when a parameter or buffer is written to, frozen, or hooked; None where nothing
    tells.
    """
    tensors = (*model.parameters(), *model.buffers())
    if any(t.is_inference() for t in tensors):
        return None
    hooks = tuple(
        tuple(map(id, hooked.values()))
        for module in model.modules()
        for name, hooked in vars(module).items()
        if name.endswith("_hooks") and isinstance(hooked, dict)
    )
    written = tuple(
        (
            id(t),
            t._version,
            t.requires_grad,
            t.data_ptr() if t.layout is torch.strided else None,
            *map(id, (t._backward_hooks or {}).values()),
        )
        for t in tensors
    )
    return written, hooks


def _fingerprint(model: nn.Module) -> object:
    """What the recorded computation depends on besides the values of parameters."""
    modules = tuple(
        (name, id(module), tuple((key, _identity(v)) for key, v in vars(module).items()))
        for name, module in model.named_modules()
    )
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return modules, tuple((name, id(t), t.shape, t.dtype, t.device) for name, t in tensors)


def _identity(value: object) -> object:
    return value if isinstance(value, _PLAIN) else id(value)
