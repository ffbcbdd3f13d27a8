"""One side of a finite-width case in PyTorch: Tangency, the tutorial's ways, or the floor.

Started by ``empirical.py``, which says where to leave the results.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from finite import networks
from finite.cases import FiniteCase
from finite.floor import gram_products
from finite.side import Measured, measure, read_job
from finite.tutorial import WAYS
from numpy.typing import NDArray
from torch import Tensor, nn

import tangency as tg

Kernel = Callable[[Tensor], Tensor]

LIMIT = 12 * 2**30
"""Bytes that a process may take."""


def ours(model: nn.Module, case: FiniteCase) -> Kernel:
    """The public API, as a user would call it."""
    return tg.EmpiricalKernel(model, output=case.layout).ntk


def tutorial(model: nn.Module, case: FiniteCase, way: str) -> Kernel:
    """One of the tutorial's ways."""
    return lambda x: WAYS[way](model, x, case.layout)


def main() -> None:
    """Carry out what the driver asks."""
    job = read_job()
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    model = networks.make(job.case.network)
    if job.side == "ours":
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        np.savez(job.parameters, **{k: v for k, v in state.items() if v.ndim})
        kernel = ours(model, job.case)
    elif job.side == "floor":
        kernel = gram_products(model)
    else:
        kernel = tutorial(model, job.case, job.side)

    def call(x: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = kernel(torch.from_numpy(x)).detach().numpy()
        return found

    versions = {name: importlib.metadata.version(name) for name in ("tangency", "torch")}
    versions["torch threads"] = str(torch.get_num_threads())
    try:
        measured, matrix = measure(call, job.x, compiles=False)
    except RuntimeError as error:  # too little memory, or an operation without a batching rule
        if job.side == "ours":
            raise
        job.leave(Measured(0.0, [], 0, failure=str(error).splitlines()[0]), None)
        return
    job.leave(dataclasses.replace(measured, versions=versions), matrix)


if __name__ == "__main__":
    main()
