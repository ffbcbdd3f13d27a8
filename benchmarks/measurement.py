"""Timing of repeated calls, and the report that one side's process leaves for the driver.

Imported in both environments, so it uses the standard library and NumPy alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from cases import Case, Inputs, Suite
from numpy.typing import NDArray
from suites import SUITES

__all__ = [
    "Job",
    "SideReport",
    "Timing",
    "job_parser",
    "measure",
    "pooled",
    "read_job",
    "save_inputs",
    "save_rows",
]

Result = TypeVar("Result")

LONG_S = 60.0
"""Seconds from which a call is not repeated: nothing disturbs it by much."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one call repeated; the first call is kept apart.

    ``first_call_s`` holds the compilation, where there is one; ``samples_s`` never does.
    """

    first_call_s: float
    samples_s: list[float]

    @property
    def best_s(self) -> float:
        """Shortest repetition: what the work costs when nothing else disturbs it."""
        return min(self.samples_s)

    @property
    def median_s(self) -> float:
        """Median repetition."""
        return statistics.median(self.samples_s)

    def to_dict(self) -> dict[str, Any]:
        """The fields with best and median beside them, ready for JSON."""
        return {**asdict(self), "best_s": self.best_s, "median_s": self.median_s}


@dataclass(frozen=True)
class SideReport:
    """What one process measured: named timings, and the versions that it ran."""

    timings: dict[str, Timing]
    versions: dict[str, str]
    threads: int | None = None
    floors: dict[str, Timing] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> SideReport:
        """Read back what :meth:`write` wrote."""
        raw = json.loads(path.read_text())
        return cls(
            timings={name: Timing(**timing) for name, timing in raw["timings"].items()},
            versions=raw["versions"],
            threads=raw["threads"],
            floors={name: Timing(**timing) for name, timing in raw["floors"].items()},
        )


class Job(NamedTuple):
    """What the driver asks of one side's process."""

    suite: Suite
    case: Case
    inputs: Inputs
    rows: NDArray[np.int64]
    report: Path
    kernels: Path
    repetitions: int
    options: argparse.Namespace


def measure(call: Callable[[], Result], repetitions: int) -> tuple[Timing, Result]:
    """Time ``call``: once, then once as warm-up uncounted, then ``repetitions`` times.

    A warm-up longer than `LONG_S` is the only sample. ``call`` must return only when its work is
    done. Returns the timing and the last result.
    """
    start = time.perf_counter()
    result = call()
    first_call_s = time.perf_counter() - start
    del result
    start = time.perf_counter()
    result = call()
    warm_up_s = time.perf_counter() - start
    if warm_up_s > LONG_S:
        return Timing(first_call_s, [warm_up_s]), result
    samples: list[float] = []
    for _ in range(repetitions):
        # Freed before the clock starts: no side holds two results or pays for freeing the old.
        del result
        start = time.perf_counter()
        result = call()
        samples.append(time.perf_counter() - start)
    return Timing(first_call_s, samples), result


def pooled(timings: list[Timing]) -> Timing:
    """One timing from several rounds: all repetitions, and the first round's first call."""
    return Timing(timings[0].first_call_s, [s for timing in timings for s in timing.samples_s])


def job_parser(description: str) -> argparse.ArgumentParser:
    """The command line that the driver writes for either side; a side may add its own options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--suite", required=True, choices=list(SUITES))
    parser.add_argument("--case", required=True, help="a case of that suite")
    parser.add_argument("--input", required=True, type=Path, help="the .npz of inputs and rows")
    parser.add_argument("--report", required=True, type=Path, help="the JSON file to write")
    parser.add_argument("--kernels", required=True, type=Path, help="the .npz of rows to write")
    parser.add_argument("--repetitions", type=int, default=7)
    return parser


def read_job(parser: argparse.ArgumentParser) -> Job:
    """Read this process's command line and the inputs that it names."""
    options = parser.parse_args()
    suite = SUITES[options.suite]
    if options.case not in suite.cases:
        parser.error(f"suite {suite.name} has the cases {', '.join(suite.cases)}")
    with np.load(options.input, allow_pickle=False) as data:
        inputs = Inputs(data["x"], data.get("other"))
        rows = data["rows"]
    return Job(
        suite=suite,
        case=suite.cases[options.case],
        inputs=inputs,
        rows=rows,
        report=options.report,
        kernels=options.kernels,
        repetitions=options.repetitions,
        options=options,
    )


def save_inputs(path: Path, inputs: Inputs, rows: NDArray[np.int64]) -> None:
    """Save what :func:`read_job` reads."""
    if inputs.other is None:
        np.savez(path, x=inputs.x, rows=rows)
    else:
        np.savez(path, x=inputs.x, rows=rows, other=inputs.other)


def save_rows(path: Path, nngp: NDArray[Any], ntk: NDArray[Any]) -> None:
    """Save the compared rows of both kernels, each of shape (rows, n)."""
    np.savez(path, nngp=nngp, ntk=ntk)
