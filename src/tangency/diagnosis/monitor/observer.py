"""What is measured of a network at one moment."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from tangency.analysis import KernelMatrix, kernel_matrix, parameter_movement
from tangency.diagnosis.laziness import unscaled
from tangency.diagnosis.monitor.probe import Probe
from tangency.diagnosis.monitor.replica import Replica
from tangency.diagnosis.monitor.sharpness import Sharpness
from tangency.empirical import EmpiricalKernel
from tangency.empirical.function import outputs, undisturbed
from tangency.errors import InvalidInput

__all__ = ["Observation", "Observer"]

HUGE = 1e100
"""Entries of a kernel whose squares would overflow, and that count as overflowed."""

WHOLE = 1024
"""Rows p * out up to which the kernel of all outputs is computed whole, (p, p, out, out); beyond,
only its mean over outputs, and its largest eigenvalue by products with vectors."""

DENSE = 256
"""Rows up to which a largest eigenvalue comes from a full decomposition."""


@dataclass(frozen=True, eq=False)
class Observation:
    """Of p probe examples; float64 on the CPU.

    Attributes:
        loss: on the probe.
        outputs, linearized: (p, out).
        kernel: (p, p), the empirical NTK, mean over outputs.
        kernel_curvature: largest eigenvalue of the NTK of all outputs, over p.
        movement: relative movement of all parameters, |theta - theta_0| / |theta_0|.
        movement_by_layer: the same by the module that holds them.
        sharpness: largest eigenvalue of the Hessian of the loss; NaN where not measured.
    """

    loss: float
    outputs: Tensor
    linearized: Tensor
    kernel: Tensor
    kernel_curvature: float
    movement: float
    movement_by_layer: dict[str, float]
    sharpness: float


class Observer:
    """Measures a replica on a probe."""

    def __init__(self, replica: Replica, probe: Probe, *, curvature: bool, seed: int) -> None:
        """The first observation is the beginning of training.

        Raises:
            InvalidInput: as `EmpiricalKernel`, or targets that do not fit the outputs.
            MissingDependency: `curvature` without curvlinops.
        """
        self.replica, self.probe = replica, probe
        network = replica.network
        with undisturbed(network, probe.x):
            self.out = self._outputs_that_fit(network)
            replica.begin()
        self._is_whole = len(probe.y) * self.out <= WHOLE
        inner, self._factor = unscaled(network)
        self._kernel = EmpiricalKernel(inner, output="full" if self._is_whole else "trace")
        self._all = EmpiricalKernel(inner, output="full")
        self._sharpness = None
        if curvature:
            self._sharpness = Sharpness(network, probe, seed)

    def observe(self) -> Observation | None:
        """The replica as loaded last; None where its parameters or outputs are not finite."""
        replica, probe = self.replica, self.probe
        if not replica.is_finite():
            return None
        with undisturbed(replica.network, probe.x):
            found = replica.outputs(probe.x)
            if not bool(torch.isfinite(found).all()):
                return None
            linearized = replica.linearized(probe.x)
            kernel, top = self._kernels()
            with torch.no_grad():
                loss = float(probe.loss(outputs(replica.network, probe.x), probe.y))
            if not (math.isfinite(loss) and float(kernel.abs().max()) < HUGE):
                return None
            sharpness = math.nan if self._sharpness is None else self._sharpness()
        return Observation(
            loss=loss,
            outputs=found.cpu().double(),
            linearized=linearized.cpu().double(),
            kernel=kernel,
            kernel_curvature=top / len(probe.y),
            movement=parameter_movement(replica.start, replica.parameters),
            movement_by_layer=self._by_layer(),
            sharpness=sharpness,
        )

    def _kernels(self) -> tuple[Tensor, float]:
        """The mean over outputs, (p, p), and the largest eigenvalue of the whole."""
        kernel = self._kernel.ntk(self.probe.x).cpu().double() * self._factor
        if not float(kernel.abs().max()) < HUGE:
            return kernel, math.inf
        if self._is_whole:
            mean = kernel.diagonal(dim1=2, dim2=3).mean(dim=-1)
            return mean, _largest(kernel_matrix(kernel))
        operator = self._all.operator(self.probe.x).to_scipy()
        top = eigsh(operator, k=1, which="LA", return_eigenvectors=False, tol=1e-4)
        return kernel, float(top[0]) * self._factor

    def _by_layer(self) -> dict[str, float]:
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in self.replica.start.items():
            layers.setdefault(name.rpartition(".")[0], {})[name] = value
        now = self.replica.parameters
        return {layer: parameter_movement(start, now) for layer, start in layers.items()}

    def _outputs_that_fit(self, network: nn.Module) -> int:
        probe = self.probe
        with torch.no_grad():
            found = self.replica.outputs(probe.x)
            p, out = found.shape
            if not bool(torch.isfinite(found).all()):
                raise InvalidInput(
                    f"{type(network).__name__} returns NaN or infinity on x_probe before training."
                )
            if probe.is_squared and probe.y.numel() != p * out:
                raise InvalidInput(
                    f"y_probe has shape {(*('n',), *probe.y.shape[1:])}, but the model has {out} "
                    f"outputs: it must be (n, {out})" + (" or (n,)." if out == 1 else ".")
                )
            value = probe.loss(outputs(network, probe.x), probe.y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InvalidInput("loss(outputs, targets) must return one number, the mean.")
        return out


def _largest(kernel: KernelMatrix) -> float:
    matrix = kernel.matrix
    if len(matrix) <= DENSE:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    start = torch.ones(len(matrix), dtype=matrix.dtype).numpy()
    values = eigsh(matrix.numpy(), k=1, which="LA", return_eigenvectors=False, v0=start)
    return float(values[0])
