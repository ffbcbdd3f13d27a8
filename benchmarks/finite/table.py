"""The Markdown of a finite-width run."""

from __future__ import annotations

from collections.abc import Sequence

from markdown import markdown_table, reached

from finite.cases import SIDES, FiniteCase, Side
from finite.result import FiniteResult
from finite.side import Measured

__all__ = ["render"]

MEBIBYTE = 1 << 20


def render(results: Sequence[FiniteResult], setting: dict[str, str]) -> str:
    """All tables of one run; `setting` says where and with what it ran."""
    versions = {k: v for r in results for m in r.measured.values() for k, v in m.versions.items()}
    lines = [f"- {name}: {value}" for name, value in setting.items()]
    lines.append("- versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    return "\n\n".join(
        [
            "\n".join(lines),
            "Seconds, best (median) [once: a first call on two examples, which records our graph; "
            "JAX's compilation]. Memory: growth of the peak of resident memory during one call, in "
            "MiB. Ratio: best to best. Difference: largest of the two float32 kernels, relative to "
            "sqrt(K_ii K_jj).",
            markdown_table(
                "case|n|outputs|side|seconds|memory|ratio|target|our share of memory|target"
                "|difference",
                [row for result in results for row in rows(result)],
            ),
        ]
    )


def rows(result: FiniteResult) -> list[list[str]]:
    """Ours, then each other side."""
    case = result.case
    head = [f"`{case.name}`", str(case.n), f"{case.out}, {case.layout}"]
    ours = [*head, SIDES["ours"], *cost(result.ours), *[""] * 5]
    return [ours, *([*["", "", ""], *beside(result, side)] for side in case.sides)]


def beside(result: FiniteResult, side: Side) -> list[str]:
    """Another side and how it compares."""
    other, case = result.measured[side], result.case
    ratio, share = result.ratio(side), result.memory_share(side)
    if ratio is None or share is None:
        return [SIDES[side], f"does not run: {other.failure}", *[""] * 6]
    if side == "floor":
        times = 1 / ratio
        limit = case.floor or 0.0
        verdict = f"ours at most {limit:g} times: {reached(times <= limit)}"
        return [SIDES[side], *cost(other), f"ours {times:.2f} times", verdict, "", "", ""]
    small = case.memory if side != "neural_tangents" else None
    return [
        SIDES[side],
        *cost(other),
        f"**{ratio:.2f}**",
        speed_verdict(case, side, ratio),
        f"{share:.2f}" if other.memory > MEBIBYTE else "",
        "none" if small is None else f"{small:g}: {reached(share <= small)}",
        f"{result.differences[side]:.1e}",
    ]


def speed_verdict(case: FiniteCase, side: Side, ratio: float) -> str:
    """Whether a side's target is reached."""
    target = case.targets.get(side)
    return "none" if target is None else f"{target:g}: {reached(ratio >= target)}"


def cost(measured: Measured) -> list[str]:
    """Seconds and memory in two cells."""
    times = f"{measured.best_s:.3f} ({measured.median_s:.3f}) [{measured.once_s:.1f}]"
    return [times, f"{measured.memory / MEBIBYTE:.0f}"]
