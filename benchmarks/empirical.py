"""Finite-width kernels of real networks, side by side: ``python benchmarks/empirical.py``.

Tangency, the two ways of the PyTorch tutorial and neural-tangents, one process after the other on
the same parameters and inputs: see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from finite.cases import CASES, SIDES, FiniteCase, Side, inputs
from finite.result import FiniteResult
from finite.side import Measured
from finite.table import render
from peer_environment import PeerEnvironmentError, ensure_peer_environment
from run import BUSY_LOAD, OUTPUTS, RESULTS, describe_setting, say
from table import SectionError, rewrite_section, section_around

HERE = Path(__file__).resolve().parent
SECTION = "empirical"


class SideError(Exception):
    """A side's process ended with an error; its own output says why."""


def measure_side(case: FiniteCase, side: Side, folder: Path, peer_python: Path) -> Measured:
    """Run one side to its end."""
    say(f"{case.name}: {SIDES[side]}")
    if side == "neural_tangents":
        # A PYTHONPATH meant for ours must not reach it.
        command = [str(peer_python), "-E", str(HERE / "finite_peer.py")]
    else:
        command = [sys.executable, str(HERE / "finite_torch.py")]
    command += ["--case", case.name, "--side", side, "--folder", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        raise SideError(f"{SIDES[side]} failed on {case.name}; its message stands above")
    return Measured.read(folder / f"{side}.json")


def measure_case(case: FiniteCase, peer_python: Path) -> FiniteResult:
    """All sides of a case, ours first: it leaves the parameters for the peer."""
    with tempfile.TemporaryDirectory(prefix="tangency-bench-") as name:
        folder = Path(name)
        np.save(folder / "x.npy", inputs(case))
        sides: tuple[Side, ...] = ("ours", *case.sides)
        measured = {side: measure_side(case, side, folder, peer_python) for side in sides}
        kernels = {
            side: np.load(folder / f"{side}.npy", allow_pickle=False)
            for side in sides
            if not measured[side].failure and side != "floor"
        }
        return FiniteResult.of(case, measured, kernels)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--peer-env", type=Path, default=HERE.parent / ".venv-peer")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--write", action="store_true", help="also write RESULTS.md")
    options = parser.parse_args(arguments)
    for name in options.cases:
        if name not in CASES:
            parser.error(f"there is no case {name!r}; there are {', '.join(CASES)}")
    if options.write and options.cases:
        parser.error("--write needs every case: name none")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases; the exit code is 1 where one fails or the kernels disagree."""
    options = read_options(arguments)
    if os.getloadavg()[0] > BUSY_LOAD:
        say(f"warning: load average {os.getloadavg()[0]:.2f}: others use these cores")
    setting = describe_setting(1, 7)
    setting["repetitions"] = "one process a side, one at a time; up to 7 calls, about 12 s"
    try:
        if options.write:
            section_around(RESULTS, SECTION)
        peer_python = ensure_peer_environment(options.peer_env, options.peer_python)
        results = [measure_case(CASES[name], peer_python) for name in options.cases or CASES]
    except (PeerEnvironmentError, SectionError, SideError) as error:
        say(f"error: {error}")
        return 1
    text = render(results, setting)
    print(text)
    save_json(results, setting)
    agree = all(result.agree for result in results)
    if options.write and agree:
        rewrite_section(RESULTS, SECTION, text)
    return 0 if agree else 1


def save_json(results: Sequence[FiniteResult], setting: dict[str, str]) -> None:
    """Keep everything measured in ``results/``, one file a run."""
    OUTPUTS.mkdir(exist_ok=True)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = OUTPUTS / f"{SECTION}-{stamp}.json"
    cases = [asdict(result) for result in results]
    path.write_text(json.dumps({"setting": setting, "cases": cases}, indent=1))
    say(f"saved {path}")


if __name__ == "__main__":
    sys.exit(main())
