"""A model that is linear in its parameters, trained by torch.optim.SGD or an ODE solver."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn


@dataclass
class LinearModel:
    """f(x)_a = f0(x)_a + sum_p J[x, a, p] (theta - theta_0)_p, on training and test examples."""

    J: Tensor
    J_test: Tensor
    f0: Tensor
    f0_test: Tensor
    y: Tensor

    @staticmethod
    def random(n: int, m: int, out: int, p: int, seed: int = 0) -> "LinearModel":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        J, J_test = normal(n, out, p), normal(m, out, p)
        return LinearModel(J, J_test, normal(n, out), normal(m, out), normal(n, out))

    @property
    def kernel(self) -> Tensor:
        return torch.einsum("iap,jbp->ijab", self.J, self.J)

    @property
    def kernel_test(self) -> Tensor:
        return torch.einsum("iap,jbp->ijab", self.J_test, self.J)

    @property
    def starts(self) -> dict[str, Tensor]:
        return {"f0_train": self.f0, "f0_test": self.f0_test}

    def outputs(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.f0 + self.J @ theta, self.f0_test + self.J_test @ theta

    def sgd(
        self, steps: int, learning_rate: float, ridge: float = 0.0, **options: Any
    ) -> list[Tensor]:
        """Movements of the parameters, before and after each step of torch.optim.SGD."""
        theta = nn.Parameter(torch.zeros(self.J.shape[2], dtype=torch.float64))
        optimizer = torch.optim.SGD([theta], lr=learning_rate, **options)
        n, visited = len(self.y), [theta.detach().clone()]
        for _ in range(steps):
            optimizer.zero_grad()
            squares = (
                self.outputs(theta)[0] - self.y
            ).square().sum() + ridge * theta.square().sum()
            (squares / (2 * n)).backward()
            optimizer.step()
            visited.append(theta.detach().clone())
        return visited

    def flow(self, times: list[float], learning_rate: float, ridge: float = 0.0) -> list[Tensor]:
        """Movements of the parameters at `times`, by an ODE solver."""
        n, p = len(self.y), self.J.shape[2]
        J, residual = self.J.reshape(-1, p).numpy(), (self.y - self.f0).reshape(-1).numpy()

        def velocity(_: float, theta: np.ndarray) -> np.ndarray:
            return -learning_rate / n * (J.T @ (J @ theta - residual) + ridge * theta)

        solution = solve_ivp(
            velocity, (0, times[-1]), np.zeros(p), "DOP853", times, rtol=1e-12, atol=1e-13
        )
        return list(torch.from_numpy(solution.y.T))


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance * (1 + float(expected.abs().max()))
