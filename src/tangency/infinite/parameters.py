"""What a module's parameters are in the limit: their scales, forward and in the gradient."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn

from tangency.errors import InvalidInput
from tangency.infinite.init import Init, measured_moment
from tangency.infinite.lowering import Parameters
from tangency.infinite.row_scales import row_scale
from tangency.infinite.values.sources import Scale
from tangency.program.row_maps import RowMap
from tangency.program.sites import ParameterUse

__all__ = ["Parametrization", "module_parameters"]

Parametrization: TypeAlias = Literal["standard", "ntk"]


class _Scales:
    """Second moments of a module's parameters, measured or prescribed, each once."""

    def __init__(
        self, model: nn.Module, init: Init | None, parametrization: Parametrization
    ) -> None:
        self.tensors = dict(model.named_parameters())
        self.init = init
        self.standard = parametrization == "standard"
        self._moments: dict[str, float | Tensor] = {}
        self._smooth = False

    def smooth(self) -> bool:
        """Whether a moment that was asked for requires gradients."""
        return self._smooth

    def _moment(self, name: str, role: str, fan_in: int, fan_out: int) -> float | Tensor:
        if name not in self._moments:
            self._moments[name] = (
                measured_moment(name, self.tensors[name], role, fan_in)
                if self.init is None
                else self.init.moment(name, role, fan_in, fan_out)
            )
        return self._noted(self._moments[name])

    def _noted(self, moment: float | Tensor) -> float | Tensor:
        self._smooth |= isinstance(moment, Tensor) and moment.requires_grad
        return moment

    def weight(self, use: ParameterUse, fan_in: int, fan_out: int) -> Scale:
        """w2, and fan_in (standard) or w2 (NTK parametrisation) for the gradient.

        Where the rows are scaled, w2 and the gradient are those of the scaled weight.
        """
        if use.rows is not None:
            return self._scaled_rows(use.name, use.rows, fan_in, fan_out)
        square = use.factor**2
        moment = self._moment(use.name, "weight", fan_in, fan_out) * square
        return self._scale(use.name, moment, fan_in * square)

    def _scaled_rows(self, name: str, rows: RowMap, fan_in: int, fan_out: int) -> Scale:
        moment = self._moment(name, "weight", fan_in, fan_out)
        forward, standard = row_scale(rows, moment, fan_in)
        gradient = standard if self.standard else standard * moment / fan_in
        return Scale(forward, gradient if self.trainable(name) else 0.0)

    def bias(self, use: ParameterUse, fan_in: int, fan_out: int) -> Scale:
        """b2, and one (standard) or b2 (NTK parametrisation) for the gradient."""
        square = use.factor**2
        moment = self._moment(use.name, "bias", fan_in, fan_out) * square
        return self._scale(use.name, moment, square)

    def table(self, name: str, values: Tensor, role: str) -> Scale:
        """m2, and one (standard) or m2 (NTK parametrisation), of rows that are used as they are."""
        moment = (
            measured_moment(name, values, role, 1)
            if self.init is None
            else self.init.moment(name, role, 1, values.shape[-1])
        )
        return self._scale(name, self._noted(moment), 1.0)

    def _scale(self, name: str, moment: float | Tensor, standard: float) -> Scale:
        gradient = standard if self.standard else moment
        return Scale(moment, gradient if self.trainable(name) else 0.0)

    def trainable(self, name: str) -> bool:
        """Frozen parameters do not count in the NTK."""
        return self.tensors[name].requires_grad

    def value(self, name: str) -> Tensor:
        """The present value."""
        return self.tensors[name].detach()


def module_parameters(
    model: nn.Module, init: Init | str, parametrization: Parametrization
) -> Parameters:
    """The scales of `model`'s parameters.

    Raises:
        InvalidInput: `init` is neither "module" nor an `Init`, it has a pattern that matches
            nothing, or `parametrization` is unknown.
    """
    if parametrization not in ("standard", "ntk"):
        raise InvalidInput(f'parametrization is {parametrization!r}; use "standard" or "ntk".')
    if isinstance(init, Init):
        init.check_overrides(model)
        scales = _Scales(model, init, parametrization)
    elif init == "module":
        scales = _Scales(model, None, parametrization)
    else:
        raise InvalidInput(f'init is {init!r}; use "module" or an Init, e.g. Init.he().')
    return Parameters(
        scales.weight, scales.bias, scales.table, scales.value, scales.trainable, scales.smooth
    )
