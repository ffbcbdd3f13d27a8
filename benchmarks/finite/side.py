"""What one side's process measures and leaves for the driver.

Imported in both environments, so it uses NumPy and the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finite.cases import CASES, FiniteCase

__all__ = ["Job", "Measured", "forget_peak", "measure", "peak_memory", "read_job"]

REPETITIONS = 7
ENOUGH_S = 12.0
"""Seconds of calls after which no other is begun."""
FEW = 2
"""Examples of the call before, which brings in whatever is made once."""
COMPARED = 64
"""Rows of the kernel that are compared, the first ones."""


@dataclass(frozen=True)
class Measured:
    """One side on one case.

    Attributes:
        once_s: what is spent once: a call on two examples, which records our graph, or where JAX
            compiles, the first call on all.
        samples_s: calls on all examples that count; a single one where it is long.
        memory: growth of the peak of resident memory, in bytes, during the first call after.
        failure: why there is nothing else; "" where there is.
        versions: of what ran.
    """

    once_s: float
    samples_s: list[float]
    memory: int
    failure: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def best_s(self) -> float:
        """The shortest call."""
        return min(self.samples_s)

    @property
    def median_s(self) -> float:
        """The median call."""
        return statistics.median(self.samples_s)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read back what `write` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Job:
    """What the driver asks of one side's process."""

    case: FiniteCase
    side: str
    folder: Path

    @property
    def x(self) -> NDArray[Any]:
        """The examples."""
        found: NDArray[Any] = np.load(self.folder / "x.npy", allow_pickle=False)
        return found

    @property
    def parameters(self) -> Path:
        """Where our side leaves parameters and buffers for the peer."""
        return self.folder / "parameters.npz"

    def leave(self, measured: Measured, kernel: NDArray[Any] | None) -> None:
        """Write the report and the compared rows."""
        if kernel is not None:
            np.save(self.folder / f"{self.side}.npy", kernel[:COMPARED])
        measured.write(self.folder / f"{self.side}.json")


def read_job() -> Job:
    """The job that the command line names."""
    parser = argparse.ArgumentParser(description="One side of a finite-width case")
    parser.add_argument("--case", choices=list(CASES), required=True)
    parser.add_argument("--side", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    return Job(CASES[options.case], options.side, options.folder)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    """Start the peak anew from what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(
    call: Callable[[NDArray[Any]], NDArray[Any]], x: NDArray[Any], *, compiles: bool
) -> tuple[Measured, NDArray[Any]]:
    """Time `call` on `x`, and watch the memory of its first time after what is done once.

    `call` returns when its work is done. The first call counts only if it is a long one. Returns
    the measurement (without versions) and the kernel.
    """
    _, once_s = timed(call, x if compiles else x[:FEW])
    forget_peak()
    before = peak_memory()
    kernel, first_s = timed(call, x)
    memory = peak_memory() - before
    samples = [first_s] if first_s > ENOUGH_S else []
    while not samples or (len(samples) < REPETITIONS and sum(samples) < ENOUGH_S):
        # Freed before the clock starts: no side holds two results or pays for freeing the old.
        del kernel
        kernel, seconds = timed(call, x)
        samples.append(seconds)
    return Measured(once_s, samples, memory), kernel


def timed(
    call: Callable[[NDArray[Any]], NDArray[Any]], x: NDArray[Any]
) -> tuple[NDArray[Any], float]:
    """What `call` returns, and the seconds it took."""
    start = time.perf_counter()
    kernel = call(x)
    return kernel, time.perf_counter() - start
