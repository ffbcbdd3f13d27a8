"""Tries the kernels of one architecture, in a process of its own with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
from architecture import Architecture
from coverage_page import Outcome, without_paths

from tangency import InfiniteKernel
from tangency.errors import UnsupportedOperation
from tangency.kernel_pair import KernelPair

__all__ = ["classify", "classify_apart"]

SEEDS = (0, 1)
"""Of the sampled rule: two, for an error that does not rely on the rule's own estimate."""


def classify(architecture: Architecture) -> Outcome:
    """Exact where the engine needs no sampling, sampled where that suffices, else not yet."""
    start = time.perf_counter()
    try:
        return _exact(architecture, start)
    except UnsupportedOperation:
        pass
    except Exception as error:
        return _not_yet(architecture, start, _reason(error))
    try:
        return _sampled(architecture)
    except Exception as error:
        return _not_yet(architecture, start, _reason(error))


def _exact(architecture: Architecture, start: float) -> Outcome:
    pair = _kernels(architecture, {})
    seconds = time.perf_counter() - start
    defect = _defect(pair)
    if defect:
        return _not_yet(architecture, start, defect)
    return Outcome(architecture.name, architecture.source, "exact", seconds)


def _sampled(architecture: Architecture) -> Outcome:
    """`seconds` are those of one seed; the error is the spread of two."""
    start = time.perf_counter()
    pairs = [_kernels(architecture, {"numerical": "sample", "seed": seed}) for seed in SEEDS]
    seconds = (time.perf_counter() - start) / len(SEEDS)
    defect = next(filter(None, map(_defect, pairs)), "")
    if defect:
        return _not_yet(architecture, start, defect)
    errors = [_relative_error(a, b) for a, b in zip(*pairs, strict=True)]
    remark = f"standard error: NNGP {errors[0]:.0e}, NTK {errors[1]:.0e}"
    return Outcome(architecture.name, architecture.source, "sampled", seconds, remark)


def _kernels(architecture: Architecture, rule: Mapping[str, Any]) -> KernelPair:
    """Kernels of two examples; the weights and data are the same at every call."""
    torch.manual_seed(0)
    model, data = architecture.make().eval(), architecture.data()
    chosen = {} if architecture.output is None else {"output": architecture.output}
    kernel = InfiniteKernel(model, data, **chosen, **architecture.options, **rule)
    return kernel.pair(data)


def _defect(pair: KernelPair) -> str:
    """Why `pair` cannot be a pair of kernels; empty where nothing speaks against it."""
    for name, kernel in (("NNGP", pair.nngp), ("NTK", pair.ntk)):
        if not kernel.isfinite().all():
            return f"the {name} is not finite"
        gram = _gram(kernel)
        if not torch.allclose(gram, gram.T, rtol=1e-4):
            return f"the {name} is not symmetric"
        if torch.linalg.eigvalsh(gram)[0] < -1e-5 * gram.diagonal().mean():
            return f"the {name} is not positive semi-definite"
    return ""


def _gram(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel `(n, n, *P, *P)` as one matrix over examples and positions, float64."""
    half = (kernel.dim() - 2) // 2
    order = [0, *range(2, 2 + half), 1, *range(2 + half, 2 + 2 * half)]
    rows = kernel.shape[0] * kernel[0, 0].numel() ** 0.5
    return kernel.permute(order).reshape(round(rows), round(rows)).double()


def _relative_error(first: torch.Tensor, second: torch.Tensor) -> float:
    """Standard error of one of two independent estimates, relative to their size."""
    difference = (first - second).double().square().mean().sqrt() / 2**0.5
    return float(difference / first.double().square().mean().sqrt())


def _reason(error: Exception) -> str:
    known = isinstance(error, UnsupportedOperation)
    message = without_paths(str(error)).removesuffix(" EmpiricalKernel needs no rules.")
    return message if known else f"{type(error).__name__}: {message}"


def _not_yet(architecture: Architecture, start: float, reason: str) -> Outcome:
    seconds = time.perf_counter() - start
    return Outcome(architecture.name, architecture.source, "not yet", seconds, reason)


def classify_apart(
    context: ForkServerContext, find: Callable[[], Architecture], limit: float, threads: int = 1
) -> Outcome:
    """`classify` an architecture in a process of its own.

    Args:
        context: how processes are made; theirs imports the libraries once, which takes seconds.
        find: a function that can be pickled (an architecture cannot) and returns it.
        limit: seconds after which the process is ended.
        threads: of the process.
    """
    architecture = find()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, find, threads))
    start = time.perf_counter()
    process.start()
    sender.close()
    try:
        if receiver.poll(limit):
            outcome: Outcome = receiver.recv()
            process.join()
            return outcome
        return _not_yet(architecture, start, f"takes more than {limit:.0f} s")
    except EOFError:
        process.join()
        return _not_yet(architecture, start, f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _child(sender: Connection, find: Callable[[], Architecture], threads: int) -> None:
    torch.set_num_threads(threads)
    sender.send(classify(find()))
