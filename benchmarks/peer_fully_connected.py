"""The peer's side of one fully connected case: neural-tangents on jitted JAX.

Runs in the peer's own environment; started by ``run.py``, which says where to leave the results.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import BIAS, HIDDEN_WEIGHT, OUTPUT_WEIGHT, WIDTH, Case
from measurement import Job, SideReport, measure, read_job, save_rows

KernelFunction = Callable[..., Any]


def load_stax() -> Any:
    """Import ``neural_tangents.stax`` without the TensorFlow that its experimental part wants."""
    name = "neural_tangents.experimental"
    sys.modules[name] = types.ModuleType(name)
    return importlib.import_module("neural_tangents.stax")


def build_kernel(case: Case) -> KernelFunction:
    """The peer's kernel function of the case's network, not jitted."""
    stax = load_stax()
    activation = {"relu": stax.Relu, "gelu": stax.Gelu}[case.activation]
    b_std = math.sqrt(BIAS)
    layers: list[Any] = []
    for _ in range(case.hidden_layers):
        layers += [stax.Dense(WIDTH, W_std=math.sqrt(HIDDEN_WEIGHT), b_std=b_std), activation()]
    layers.append(stax.Dense(1, W_std=math.sqrt(OUTPUT_WEIGHT), b_std=b_std))
    kernel_fn: KernelFunction = stax.serial(*layers)[2]
    return kernel_fn


def time_side(job: Job) -> None:
    """Time the jitted symmetric kernels in float32 and leave the report and the rows."""
    jax = importlib.import_module("jax")
    kernel_fn = jax.jit(build_kernel(job.case), static_argnames="get")
    x = jax.device_put(job.x).block_until_ready()

    def call() -> Any:
        return jax.block_until_ready(kernel_fn(x, None, get=("nngp", "ntk")))

    timing, kernels = measure(call, job.repetitions)
    save_rows(job.kernels, np.asarray(kernels.nngp)[job.rows], np.asarray(kernels.ntk)[job.rows])
    packages = ("neural-tangents", "jax", "jaxlib", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    SideReport(timings={"jitted": timing}, versions=versions).write(job.report)


def save_reference(job: Job) -> None:
    """Save the compared rows computed in float64: neither side's float32 is the judge."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    x = jax.device_put(job.x.astype(np.float64))
    kernels = build_kernel(job.case)(x[job.rows], x, get=("nngp", "ntk"))
    save_rows(job.kernels, np.asarray(kernels.nngp), np.asarray(kernels.ntk))


def main() -> None:
    """Read the driver's request and carry it out."""
    job = read_job(
        "neural-tangents on one fully connected case",
        {"--reference": "only save the compared rows, in float64, and time nothing"},
    )
    if job.options.reference:
        save_reference(job)
    else:
        time_side(job)


if __name__ == "__main__":
    main()
