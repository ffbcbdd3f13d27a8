"""A weight times its input: as it is, or with its rows standardised or normalised, and gains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from tangency.infinite.entries import whole_parameter
from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering
from tangency.infinite.row_scales import TooFewEntries
from tangency.infinite.rules.normalization import scaled
from tangency.infinite.values.centred_weight import CentredWeight
from tangency.infinite.values.sources import Scale
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import Weight, WeightInput
from tangency.program.parameters import ParameterUse

__all__ = ["WeightProduct"]


@dataclass(frozen=True)
class WeightProduct:
    """What a product with a weight makes.

    Attributes:
        node: the product, for messages.
        use: the weight.
        positions: positions of the result.
        identity: equal for equal rows of equal weights.
        fans: numbers of inputs and outputs that one output or input is connected to.
    """

    node: fx.Node
    use: ParameterUse
    positions: Positions
    identity: tuple[object, ...]
    fans: tuple[int, int]

    def __call__(self, lowering: Lowering, source: WeightInput, start: int, length: int) -> Value:
        """The rows `start : start + length` times the input."""
        rows, scale = self.use.rows, self._scale(lowering)
        centred = rows is not None and rows.centred
        kind = CentredWeight if centred else Weight
        value = kind(self.positions, self.identity, scale, source)
        if rows is None or rows.gain_name is None:
            return value
        features = lowering.program.atoms(self.node, "width")
        entries = whole_parameter(lowering, rows.gain_name, (features,), features, start, length)
        return scaled(lowering, value, entries)

    def _scale(self, lowering: Lowering) -> Scale:
        try:
            return lowering.parameters.weight(self.use, *self.fans)
        except TooFewEntries:
            raise lowering.unsupported(
                self.node,
                f"normalises rows of {self.fans[0]} entries: the mean of its NTK over random "
                "weights is infinite",
            ) from None
