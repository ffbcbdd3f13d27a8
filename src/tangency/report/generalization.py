"""The report's part on generalisation: the learning curve and leave-one-out, beside test errors."""

from __future__ import annotations

from tangency.drawing import ACTUAL as MEASURED
from tangency.drawing import INFINITE
from tangency.report.style import Figure, from_plotly, layout, line, numbers, points
from tangency.study import Generalization

__all__ = ["generalization_figures", "generalization_text", "held_out_text"]


def generalization_figures(found: Generalization) -> dict[str, Figure]:
    """Learning curve and leave-one-out errors by name."""
    return {"learning_curve": _learning_curve(found), "leave_one_out": _held_out(found)}


def _learning_curve(found: Generalization) -> Figure:
    """Test errors alone: at a small ridge those on the training examples lie decades below."""
    figure = from_plotly(found.predicted.figure(found.measured))
    figure["data"] = [trace for trace in figure["data"] if trace["name"].startswith("test")]
    figure["layout"]["yaxis"] |= {"dtick": "D2"}
    return figure


def _held_out(found: Generalization) -> Figure:
    """Leave-one-out error against the ridge, and the test error that it stands for."""
    ridges = numbers(found.held_out.ridge)
    foretold = line(ridges, numbers(found.held_out.error), "leave-one-out", INFINITE)
    measured = points(ridges, numbers(found.test_error), "test examples", MEASURED)
    drawn = layout("ridge", "mean squared error")
    drawn["xaxis"] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    drawn["yaxis"] |= {"type": "log"}
    return {"data": [foretold, measured], "layout": drawn}


def generalization_text(found: Generalization) -> str:
    """What the learning curve says, and how far theory and measurement are apart."""
    predicted, measured = (
        float(found.predicted.test_error[-1]),
        float(found.measured.test_error[-1]),
    )
    n = int(found.measured.sizes[-1])
    gap = predicted / measured - 1
    verdict = "within a tenth of" if abs(gap) < 0.1 else f"{abs(gap):.0%} {_side(gap)}"
    return (
        f"Regression with the {found.kernel}, fitted to random parts of the training examples: "
        "points are measured on the test examples, the line is what theory foretells from the "
        f"training examples alone. With all {n} it foretells a mean squared error of "
        f"{predicted:.3g}, {verdict} the measured {measured:.3g}. The theory takes the kernel's "
        "features for Gaussian, which real data need not be."
    )


def _side(gap: float) -> str:
    return "above" if gap > 0 else "below"


def held_out_text(found: Generalization) -> str:
    """What leave-one-out says."""
    best = found.best
    error, test = float(found.held_out.error[best]), float(found.test_error[best])
    text = (
        "Leave-one-out asks what regression on all other training examples says about each one; "
        "it follows from the kernel in closed form. At its best ridge, "
        f"{found.held_out.best_ridge:.3g}, its error is {error:.3g}, where the test examples "
        f"give {test:.3g}"
    )
    if found.accuracy is not None and found.test_accuracy is not None:
        text += (
            f"; {found.accuracy:.1%} of the answers are right, and {found.test_accuracy:.1%} on "
            "the test examples"
        )
    return text + "."
