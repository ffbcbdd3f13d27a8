"""The tables that only one suite has: our time against what the suite holds it against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from comparison import CaseResult
from markdown import markdown_table, met
from yardsticks import FLOPS, gram_floor, pair_cost

__all__ = ["FLOOR_TABLES"]


def gram_floor_table(results: Sequence[CaseResult]) -> str:
    """The parts of the fully connected floor and our time in multiples of it."""
    header = (
        "case|Gram full|Gram half|pass, fresh|pass, reused|ours / full floor|ours / half floor"
        "|target of full|target of half"
    )
    rows: list[list[str]] = []
    for r in results:
        times = gram_floor(r)
        full, half = times["times_floor_full"], times["times_floor_half"]
        parts = [
            f"{1e3 * r.floors[part].best_s:.1f}"
            for part in ("gram_full", "gram_half", "pass_fresh", "pass_reused")
        ]
        targets = [met(r.case.target_floor, times) for times in (full, half)]
        rows.append([f"`{r.case.name}`", *parts, f"{full:.2f}", f"{half:.2f}", *targets])
    return "\n\n".join(
        [
            "Against the floor, in milliseconds. Full: `x @ x.T` and one fresh pass over memory "
            "per output. Half: the lower triangle by row panels and half a pass per output.",
            markdown_table(header, rows),
        ]
    )


def pair_cost_table(results: Sequence[CaseResult]) -> str:
    """Time per position pair and layer beside the peer's and the arithmetic floor."""
    header = (
        "case|pairs asked|distinct pairs|neural-tangents, per pair asked|ours, per pair asked"
        "|target|ours, per distinct pair|target|floor|ours / floor|whole kernel, target"
    )
    rows: list[list[str]] = []
    for r in results:
        cost = pair_cost(r)
        asked, distinct = cost["ours_asked_ns"], cost["ours_distinct_ns"]
        rows.append(
            [
                f"`{r.case.name}`",
                f"{cost['pairs_asked'] / 1e6:.1f} M",
                f"{cost['pairs_distinct'] / 1e6:.1f} M",
                f"{cost['peer_asked_ns']:.1f}",
                f"{asked:.2f}",
                met(r.case.target_ns, asked),
                f"{distinct:.2f}",
                met(r.case.target_ns, distinct),
                f"{cost['floor_ns']:.2f}",
                f"{cost['times_floor']:.1f}",
                met(r.case.target_s, r.ours_best_s, " s"),
            ]
        )
    flops = ", ".join(f"{count} {text}" for text, count in FLOPS.items())
    return "\n\n".join(
        [
            "Nanoseconds per position pair and layer (a convolution and its ReLU), NNGP and NTK "
            "together. *Asked* counts the whole question as the peer computes it; *distinct* what "
            "is left when every unordered pair of a symmetric kernel is taken once.",
            f"The floor is {sum(FLOPS.values())} floating-point operations per pair and layer "
            f"({flops}), at the rate of this run's float32 matrix product.",
            markdown_table(header, rows),
        ]
    )


FLOOR_TABLES: dict[str, Callable[[Sequence[CaseResult]], str]] = {
    "fully_connected": gram_floor_table,
    "convolutional": pair_cost_table,
}
"""The suite's own part of what a run writes, in Markdown."""
