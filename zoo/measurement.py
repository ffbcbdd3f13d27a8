"""One real network's kernel: time, memory, and agreement with computations of other kinds.

Each measurement is made in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils import _pytree as pytree

from tangency import EmpiricalKernel

__all__ = ["Measured", "Reference", "apart", "deviation", "measure", "reference"]

SEED = 0
ENTRIES = 8

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Measured:
    """What `EmpiricalKernel` did.

    Attributes:
        kernel: (n, n).
        first, second: seconds of the first and the second call of `ntk`.
        peak: bytes above the module and the data, at most.
        by_sites: number of parameter tensors served by sites of the recorded graph.
        by_jacobians: number of the others, and why, in `reasons`.
        verified: largest deviation that `verify` found.
        ok: whether `verify` found all within rounding.
    """

    kernel: list[list[float]]
    first: float
    second: float
    peak: int
    by_sites: int
    by_jacobians: int
    reasons: tuple[str, ...]
    verified: float
    ok: bool


@dataclass(frozen=True)
class Reference:
    """The kernel by the torch.func tutorial, or by plain autograd where that is refused.

    Attributes:
        kernel: (n, n).
        seconds: of the only call.
        peak: bytes above the module and the data, at most.
        refusal: what `torch.func` says; empty where it runs.
    """

    kernel: list[list[float]]
    seconds: float
    peak: int
    refusal: str


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of a function run in a new process, forked from one that holds the libraries."""
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        return pool.submit(function, *args, **kwargs).result()


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # Before Python 3.13 the server does not see this script's folder, and quietly preloads nothing.
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    context.set_forkserver_preload(["real_models", "measurement", "sentences"])
    return context


def measure(index: int) -> Measured:
    """Kernel of one of `REAL_MODELS`, twice, and its verification."""
    model, x, output = _prepared(index)
    kernel = EmpiricalKernel(model, output=output)
    peak = PeakMemory()
    first, matrix = _timed(lambda: kernel.ntk(x))
    second, matrix = _timed(lambda: kernel.ntk(x))
    above = peak.above()
    paths = kernel.plan(x).parameters
    others = [p for p in paths if "Jacobian" in p.path]
    report = kernel.verify(x, entries=ENTRIES)
    return Measured(
        matrix.double().tolist(),
        first,
        second,
        above,
        len(paths) - len(others),
        len(others),
        tuple(f"{p.name}: {p.reason}" for p in others),
        max(check.deviation for check in report.checks),
        report.ok,
    )


def reference(index: int) -> Reference:
    """Kernel of one of `REAL_MODELS` by other means."""
    model, x, output = _prepared(index)
    peak = PeakMemory()
    outputs = _outputs(model, output)
    refusal = ""
    try:
        seconds, matrix = _timed(lambda: jacobian_contraction(model, outputs, x))
    except Exception as error:  # whatever torch.func says is what the table shows
        refusal = _in_short(error)
        seconds, matrix = _timed(lambda: by_autograd(model, outputs, x))
    return Reference(matrix.double().tolist(), seconds, peak.above(), refusal)


def jacobian_contraction(
    model: nn.Module, outputs: Callable[[dict[str, Tensor], Any], Tensor], x: Any
) -> Tensor:
    """The kernel of PyTorch's tutorial "Neural Tangent Kernels", mean over outputs, (n, n)."""
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def single(parameters: dict[str, Tensor], example: Any) -> Tensor:
        one = pytree.tree_map(lambda t: t.unsqueeze(0), example)
        return outputs(parameters, one).squeeze(0)

    jacobians = vmap(jacrev(single), (None, 0))(parameters, x)
    return torch.stack([_mean_of_products(j.flatten(2)) for j in jacobians.values()]).sum(0)


def _mean_of_products(jacobian: Tensor) -> Tensor:
    """Of (n, k, size), over k: (n, n). In float64, one output at a time: a sum of the 20 million
    products of a ResNet in float32 is off by a thousandth.
    """
    products = [rows @ rows.mT for rows in (part.double() for part in jacobian.unbind(1))]
    return torch.stack(products).mean(0)


def by_autograd(
    model: nn.Module, outputs: Callable[[dict[str, Tensor], Any], Tensor], x: Any
) -> Tensor:
    """The same by one backward pass for every output of every example; products in float64."""
    n = len(pytree.tree_leaves(x)[0])
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    rows = []
    for i in range(n):
        one = pytree.tree_map(lambda t, i=i: t[i : i + 1], x)
        for value in outputs(parameters, one)[0]:
            found = torch.autograd.grad(
                value, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            rows.append(torch.cat([g.flatten() for g in found]).double())
    jacobian = torch.stack(rows).unflatten(0, (n, -1))
    return torch.einsum("iap,jap->ij", jacobian, jacobian) / jacobian.shape[1]


def deviation(kernel: list[list[float]], other: list[list[float]]) -> float:
    """The largest one, relative to sqrt(K_ii K_jj)."""
    a, b = torch.tensor(kernel), torch.tensor(other)
    size = b.diagonal().sqrt()
    return float(((a - b).abs() / (size[:, None] * size)).max())


class PeakMemory:
    """Memory of this process above what it is now, at most (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget earlier peaks
        self._start = _status("VmRSS")

    def above(self) -> int:
        """Bytes."""
        return _status("VmHWM") - self._start


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None
    return 1024 * int(found[1])


def _prepared(index: int) -> tuple[nn.Module, Any, Any]:
    from real_models import REAL_MODELS

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    row = REAL_MODELS[index]
    return row.make().eval(), row.data(), row.output


def _outputs(model: nn.Module, output: Any) -> Callable[[dict[str, Tensor], Any], Tensor]:
    """The outputs that count of a batch, (n, k), as a function of parameters and data."""

    def outputs(parameters: dict[str, Tensor], x: Any) -> Tensor:
        args, kwargs = ((), x) if isinstance(x, dict) else ((x,), {})
        returned: Any = functional_call(model, parameters, args, kwargs)
        if callable(output):
            returned = output(returned)
        chosen: Tensor = returned[:, output : output + 1] if isinstance(output, int) else returned
        return chosen

    return outputs


def _timed(function: Callable[[], R]) -> tuple[float, R]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _in_short(error: Exception) -> str:
    """The first sentence of an error, without the choices that vmap's offers."""
    text = " ".join(str(error).split())
    if "data-dependent control flow" in text:
        return "vmap: data-dependent control flow"
    return f"{type(error).__name__}: {text[:100]}"
