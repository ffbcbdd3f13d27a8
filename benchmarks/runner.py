"""One case measured: the sides' processes, one at a time and in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import Case, Suite, checked_rows
from comparison import CaseResult, Rows, compare_rows
from measurement import SideReport, pooled, save_inputs

__all__ = ["Plan", "SideError", "run_case"]

HERE = Path(__file__).resolve().parent


class SideError(Exception):
    """A side's process ended with an error; its own output says why."""


@dataclass(frozen=True)
class Plan:
    """How much is measured of every case of a suite."""

    suite: Suite
    peer_python: Path
    rounds: int
    repetitions: int
    profiles: Path | None
    """Where each case leaves the profile of one of our calls, if anywhere."""
    say: Callable[[str], None]
    """Told of each step."""


@dataclass(frozen=True)
class Runner:
    """Starts the sides' processes for one case, inside one temporary folder."""

    plan: Plan
    case: Case
    folder: Path

    def side(self, label: str, python: Sequence[str], script: str, *flags: str) -> Path:
        """Run one side to its end; returns where its report lies, if it times anything."""
        report = self.folder / f"{label}.json"
        command = [*python, str(HERE / script)]
        command += ["--suite", self.plan.suite.name, "--case", self.case.name]
        command += ["--input", str(self.folder / "input.npz"), "--report", str(report)]
        command += ["--kernels", str(self.folder / f"{label}.npz")]
        command += ["--repetitions", str(self.plan.repetitions), *flags]
        # Caches of its own: the first round's first call compiles, whatever ran here before.
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        if subprocess.run(command, check=False, env=os.environ | own).returncode != 0:
            raise SideError(f"{script} failed on {self.case.name}; its message stands above")
        return report

    def ours(self, mode: str, *flags: str) -> SideReport:
        """Our side in one mode, in the driver's own environment."""
        report = self.side(mode, [sys.executable], "ours.py", "--mode", mode, *flags)
        return SideReport.read(report)

    def peer(self) -> SideReport:
        """The peer's side, in its environment."""
        return SideReport.read(self.peer_side("peer"))

    def reference(self) -> Rows:
        """The compared rows in float64."""
        self.peer_side("reference", "--reference")
        return self.rows("reference")

    def peer_side(self, label: str, *flags: str) -> Path:
        """Run the peer's script; a PYTHONPATH meant for ours (-E) must not reach it."""
        return self.side(label, [str(self.plan.peer_python), "-E"], "peer.py", *flags)

    def rows(self, label: str) -> Rows:
        """The compared rows that the process of that label saved."""
        with np.load(self.folder / f"{label}.npz", allow_pickle=False) as data:
            return {"nngp": data["nngp"], "ntk": data["ntk"]}

    def profile_flags(self, number: int) -> list[str]:
        """The last round writes the profile, after its timings."""
        if self.plan.profiles is None or number != self.plan.rounds:
            return []
        name = f"{self.plan.suite.name}-{self.case.name}-profile.txt"
        return ["--profile", str(self.plan.profiles / name)]


def run_case(case: Case, plan: Plan) -> tuple[CaseResult, dict[str, str]]:
    """Measure one case: ours, peer, ours, peer...; returns the result and the versions run."""
    with tempfile.TemporaryDirectory(prefix="tangency-bench-") as name:
        folder = Path(name)
        rows = checked_rows(case)
        save_inputs(folder / "input.npz", plan.suite.inputs(case), rows)
        runner = Runner(plan, case, folder)
        ours: list[SideReport] = []
        peers: list[SideReport] = []
        for number in range(1, plan.rounds + 1):
            plan.say(f"{case.name}: round {number} of {plan.rounds}, Tangency")
            ours.append(runner.ours("compiled", *runner.profile_flags(number)))
            plan.say(f"{case.name}: round {number} of {plan.rounds}, neural-tangents")
            peers.append(runner.peer())
        plan.say(f"{case.name}: Tangency by default and eager, float64 reference")
        result = CaseResult(
            case=case,
            compiled=[report.timings["compiled"] for report in ours],
            default=runner.ours("default").timings["default"],
            eager=runner.ours("eager").timings["eager"],
            peer=[report.timings["jitted"] for report in peers],
            floors={
                part: pooled([report.floors[part] for report in ours]) for part in ours[0].floors
            },
            errors=compare_rows(
                runner.rows("compiled"),
                runner.rows("peer"),
                runner.reference(),
                None if case.cross else rows,
            ),
        )
    versions = ours[0].versions | peers[0].versions
    return result, versions | {"torch threads": str(ours[0].threads)}
