"""The peer's side of one case: neural-tangents on jitted JAX.

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
from cases import BIAS, HIDDEN_WEIGHT, OUTPUT_WEIGHT, Case
from measurement import Job, SideReport, job_parser, measure, read_job, save_rows
from numpy.typing import NDArray

KernelFunction = Callable[..., Any]

WIDTH = 512
"""Of every hidden layer; the peer's kernels do not depend on it."""


def load_stax() -> Any:
    """Import ``neural_tangents.stax`` without the TensorFlow that its experimental part wants."""
    name = "neural_tangents.experimental"
    sys.modules[name] = types.ModuleType(name)
    return importlib.import_module("neural_tangents.stax")


def build_kernel(case: Case) -> KernelFunction:
    """The peer's kernel function of the case's network, not jitted."""
    stax = load_stax()
    b_std = math.sqrt(BIAS)
    hidden = {"W_std": math.sqrt(HIDDEN_WEIGHT), "b_std": b_std}
    side = case.filter_size
    make: dict[str, Callable[[], Any]] = {
        "linear": lambda: stax.Dense(WIDTH, **hidden),
        "conv": lambda: stax.Conv(WIDTH, (side, side), padding="SAME", **hidden),
        "relu": stax.Relu,
        "gelu": stax.Gelu,
        "pool": lambda: stax.AvgPool((2, 2), strides=(2, 2)),
        "global_pool": stax.GlobalAvgPool,
        "flatten": stax.Flatten,
    }
    layers = [make[layer]() for layer in case.layers[:-1]]
    layers.append(stax.Dense(1, W_std=math.sqrt(OUTPUT_WEIGHT), b_std=b_std))
    kernel_fn: KernelFunction = stax.serial(*layers)[2]
    return kernel_fn


def channels_last(x: NDArray[Any] | None) -> NDArray[Any] | None:
    """The order of dimensions that the peer wants, in memory: the transposition is not timed."""
    return x if x is None or x.ndim == 2 else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def time_side(job: Job) -> None:
    """Time the jitted kernels in float32 and leave the report and the rows."""
    jax = importlib.import_module("jax")
    kernel_fn = jax.jit(build_kernel(job.case), static_argnames="get")
    x, other = jax.block_until_ready(jax.device_put([channels_last(a) for a in job.inputs]))

    def call() -> Any:
        return jax.block_until_ready(kernel_fn(x, other, get=("nngp", "ntk")))

    timing, kernels = measure(call, job.repetitions)
    save_rows(job.kernels, np.asarray(kernels.nngp)[job.rows], np.asarray(kernels.ntk)[job.rows])
    packages = ("neural-tangents", "jax", "jaxlib", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    SideReport(timings={"jitted": timing}, versions=versions).write(job.report)


def save_reference(job: Job) -> None:
    """Save the compared rows computed in float64: neither side's float32 is the judge.

    A few rows at a time: with position axes, all of them would take gigabytes.
    """
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    x, other = (channels_last(a) for a in job.inputs)
    assert x is not None
    columns = (x if other is None else other).astype(np.float64)
    kernel_fn = build_kernel(job.case)
    step = len(job.rows) if x.ndim == 2 else 1
    blocks = [
        kernel_fn(
            x[job.rows[start : start + step]].astype(np.float64), columns, get=("nngp", "ntk")
        )
        for start in range(0, len(job.rows), step)
    ]
    save_rows(
        job.kernels,
        np.concatenate([np.asarray(block.nngp) for block in blocks]),
        np.concatenate([np.asarray(block.ntk) for block in blocks]),
    )


def main() -> None:
    """Read the driver's request and carry it out."""
    parser = job_parser("neural-tangents on one case")
    parser.add_argument(
        "--reference",
        action="store_true",
        help="only save the compared rows, in float64, and time nothing",
    )
    job = read_job(parser)
    if job.options.reference:
        save_reference(job)
    else:
        time_side(job)


if __name__ == "__main__":
    main()
