"""Kernels of Gaussian features with a known population, and their exact test error."""

from __future__ import annotations

import numpy as np


def gaussian_errors(
    eigenvalues: np.ndarray,
    coefficients: np.ndarray,
    n: int,
    ridge: float,
    noise: float,
    repeats: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(repeats,) test and train errors of kernel ridge regression on n random examples.

    Features phi_i are independent standard normal, so the test error is a sum over modes.
    """
    rng = np.random.default_rng(seed)
    test, train = np.empty(repeats), np.empty(repeats)
    for repeat in range(repeats):
        phi = rng.normal(size=(n, len(eigenvalues)))
        y = phi @ coefficients + np.sqrt(noise) * rng.normal(size=n)
        weighted = phi * np.sqrt(eigenvalues)
        if ridge == 0 and n > len(eigenvalues):
            w = np.linalg.lstsq(weighted, y, rcond=None)[0]
        else:
            w = weighted.T @ np.linalg.solve(weighted @ weighted.T + ridge * np.eye(n), y)
        learned = np.sqrt(eigenvalues) * w
        test[repeat] = ((coefficients - learned) ** 2).sum() + noise
        train[repeat] = ((y - weighted @ w) ** 2).mean()
    return test, train
