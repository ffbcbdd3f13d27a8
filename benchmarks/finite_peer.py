"""neural-tangents on one finite-width case, by structured derivatives.

Runs in the peer's own environment; started by ``empirical.py``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from finite.cases import FiniteCase
from finite.jax_networks import FUNCTIONS, Values, split
from finite.side import measure, read_job
from numpy.typing import NDArray
from peer import load_stax

load_stax()  # without the TensorFlow that its experimental part wants
nt = importlib.import_module("neural_tangents")

IMPLEMENTATION = "STRUCTURED_DERIVATIVES"
"""The fastest of its implementations on these networks: RESULTS.md has the times of all."""

Call = Callable[[NDArray[Any]], NDArray[Any]]


def kernel_of(implementation: str, case: FiniteCase, parameters: Values, buffers: Values) -> Call:
    """A jitted kernel of one implementation."""
    network = FUNCTIONS[case.network]
    kernel_fn = jax.jit(
        nt.empirical_ntk_fn(
            lambda values, x: network(values, buffers, x),
            trace_axes=() if case.layout == "full" else (-1,),
            vmap_axes=0,
            implementation=nt.NtkImplementation[implementation],
        ),
        static_argnums=1,
    )
    placed = jax.device_put(dict(parameters))
    return lambda x: np.asarray(kernel_fn(x, None, placed))


def main() -> None:
    """Carry out what the driver asks."""
    job = read_job()
    with np.load(job.parameters, allow_pickle=False) as saved:
        parameters, buffers, x = split(dict(saved), job.x)
    call = kernel_of(IMPLEMENTATION, job.case, parameters, buffers)
    measured, matrix = measure(call, x, compiles=True)
    packages = ("neural-tangents", "jax", "jaxlib", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    job.leave(dataclasses.replace(measured, versions=versions), matrix)


if __name__ == "__main__":
    main()
