"""How time and memory of our kernels grow: ``python benchmarks/scaling.py``.

Each point runs in a fresh process, about three minutes in all. With ``--write`` the table and the
picture of docs/cost.md are made anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markdown import markdown_table
from run import processor_name, usable_cores
from scaling_figure import draw
from scaling_studies import STUDIES, Study
from table import rewrite_section, section_around

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "cost.md"
PICTURE = HERE.parent / "docs" / "images" / "cost.png"
SECTION = "scaling"
FITTED = 3
"""The largest points of a study: small ones are ruled by what is paid once per call."""
MEGABYTE = 1e6


class PointError(Exception):
    """A point's process ended with an error; its own output says why."""


@dataclass(frozen=True)
class Growth:
    """A study measured."""

    study: Study
    seconds: list[float]
    memory: list[int]
    """Growth of the peak of resident memory during the kernel, in bytes."""

    @property
    def exponent(self) -> float:
        """Slope of time against size, both logarithmic, over the largest sizes."""
        sizes, times = np.log(self.study.values[-FITTED:]), np.log(self.seconds[-FITTED:])
        return float(np.polyfit(sizes, times, 1)[0])


def measure_study(study: Study, repetitions: int) -> Growth:
    """Run the study's points, smallest first, each in a process of its own."""
    points = []
    for value in study.values:
        print(f"{study.name} = {value}", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / "scaling_point.py"), study.name, str(value)]
        command += ["--repetitions", str(repetitions)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise PointError(f"{study.name} = {value} failed; its message stands above")
        points.append(json.loads(done.stdout.splitlines()[-1]))
    return Growth(study, [p["seconds"] for p in points], [p["memory"] for p in points])


def render(growths: Sequence[Growth]) -> str:
    """The table of all studies in Markdown."""
    header = "what grows|fixed|sizes|milliseconds|MB of working memory and output|time grows as|law"
    rows = [
        [
            g.study.size,
            g.study.fixed,
            listed(g.study.values, "d"),
            listed([1e3 * s for s in g.seconds], ".3g"),
            listed([m / MEGABYTE for m in g.memory], ".0f"),
            f"size^{g.exponent:.2f}",
            f"size^{g.study.law}: {g.study.reason}",
        ]
        for g in growths
    ]
    return "\n\n".join(
        [
            f"Measured on {processor_name()}, {usable_cores()} cores, float32, NNGP and NTK, "
            f"`compile=True`; the exponent is fitted to the {FITTED} largest sizes.",
            markdown_table(header, rows),
            f"![Time and memory against each size]({PICTURE.relative_to(PAGE.parent)})",
        ]
    )


def listed(values: Sequence[float], form: str) -> str:
    """Values in one cell."""
    return ", ".join(format(value, form) for value in values)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("studies", nargs="*", metavar="study", help=f"{', '.join(STUDIES)} (all)")
    parser.add_argument("--repetitions", type=int, default=3, help="timed calls of each kernel")
    parser.add_argument(
        "--write", action="store_true", help="also write docs/cost.md and its picture"
    )
    options = parser.parse_args(arguments)
    for name in options.studies:
        if name not in STUDIES:
            parser.error(f"there is no study {name!r}; there are {', '.join(STUDIES)}")
    if options.write and options.studies:
        parser.error("--write needs every study: name none")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the studies; returns the exit code."""
    options = read_options(arguments)
    if options.write:
        section_around(PAGE, SECTION)
    try:
        growths = [
            measure_study(STUDIES[name], options.repetitions) for name in options.studies or STUDIES
        ]
    except PointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = render(growths)
    print(text)
    if options.write:
        draw([(g.study, g.seconds, [m / MEGABYTE for m in g.memory]) for g in growths], PICTURE)
        rewrite_section(PAGE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
