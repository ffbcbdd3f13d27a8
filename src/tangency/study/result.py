"""What a study found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tangency.analysis import Spectrum
from tangency.datasets import Dataset
from tangency.diagnosis import Trainability, TrainingCheck
from tangency.study.convergence import Convergence
from tangency.study.generalization import Generalization

__all__ = ["Score", "Study", "score"]


@dataclass(frozen=True)
class Score:
    """How well one predictor does on the test examples.

    Attributes:
        name: of the predictor.
        gloss: what it is, in one sentence.
        accuracy: share of test examples whose class is right; None for regression.
        r2: 1 - squared error / variance of the targets; None for classes.
        rmse: root mean square error in the unit of the data; None for classes.
    """

    name: str
    gloss: str
    accuracy: float | None = None
    r2: float | None = None
    rmse: float | None = None

    @property
    def value(self) -> float:
        """Accuracy, or R^2."""
        found = self.r2 if self.accuracy is None else self.accuracy
        assert found is not None
        return found


def score(name: str, gloss: str, outputs: Tensor, data: Dataset) -> Score:
    """The score of `outputs`, (m, out), on the test examples of `data`."""
    if data.labels_test is not None:
        right = outputs.argmax(dim=1).cpu() == data.labels_test
        return Score(name, gloss, accuracy=float(right.double().mean()))
    error = (outputs.double().cpu() - data.y_test.double()).square()
    variance = (data.y_test.double() - data.y_test.double().mean(dim=0)).square()
    rmse = torch.sqrt((error * data.target_scale.double().square()).mean())
    return Score(name, gloss, r2=1 - float(error.sum() / variance.sum()), rmse=float(rmse))


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """One network on one data set.

    Attributes:
        data: that it was trained and tested on.
        network: what it is called.
        network_note: what to know of the way it was drawn.
        parameters: how many can be trained.
        program: what it computes, as a table; None if it cannot be captured.
        program_reason: why not.
        check: the real training run beside the predictions of the kernels.
        spectrum: of the initial empirical NTK, with the training targets.
        spectrum_infinite: of the infinite-width NTK; None without one.
        convergence: of the empirical to the infinite kernel with width; None where there is none.
        convergence_reason: why not.
        generalization: learning curve and leave-one-out of kernel regression; None where the
            kernel does not allow it.
        generalization_reason: why not.
        trainability: of the network before training; None where it could not be worked out.
        trainability_reason: why not.
        scores: on the test examples, the trained network first.
        chance: what a predictor that ignores the inputs reaches.
        seed: of the split, the network and everything drawn.
        seconds: that the study took.
    """

    data: Dataset
    network: str
    network_note: str
    parameters: int
    program: str | None
    program_reason: str | None
    check: TrainingCheck
    spectrum: Spectrum
    spectrum_infinite: Spectrum | None
    convergence: Convergence | None
    convergence_reason: str | None
    generalization: Generalization | None
    generalization_reason: str | None
    trainability: Trainability | None
    trainability_reason: str | None
    scores: tuple[Score, ...]
    chance: float
    seed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, the parts as dictionaries of their own."""
        parts = (
            self.data,
            self.check,
            self.spectrum,
            self.spectrum_infinite,
            self.convergence,
            self.generalization,
            self.trainability,
        )
        nested = {id(part) for part in parts if part is not None}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found = {k: v.to_dict() if id(v) in nested else v for k, v in plain.items()}
        return found | {"scores": [asdict(s) for s in self.scores]}

    def __repr__(self) -> str:
        unit = "accuracy" if self.data.classes else "R^2"
        lines = [
            f"Study of a {self.network} on {self.data.name}",
            f"  regime         {self.check.regime}",
            f"  training loss  {float(self.check.loss[0]):.4g} to {float(self.check.loss[-1]):.4g} "
            f"in {int(self.check.steps[-1])} steps "
            f"(predicted {float(self.check.loss_empirical[-1]):.4g})",
        ]
        if self.trainability is not None:
            lines.append(f"  trainability   {self.trainability.verdict}")
        lines += [f"  test {unit}  {s.value:.3f}  {s.name}" for s in self.scores]
        return "\n".join(lines)
