"""Scores of labels: their expected size, and flipped labels of real data."""

import numpy as np
import pytest
import torch
from torch import nn

from tangency import InfiniteKernel
from tangency.analysis import kernel_matrix
from tangency.analysis.generalization import leave_one_out, ridge_path
from tangency.analysis.geometry import label_noise
from tangency.errors import InvalidInput, SingularKernel


def test_scores_are_standardised_leave_one_out_residuals():
    rng = np.random.default_rng(0)
    phi, y, ridge = rng.normal(size=(15, 20)), rng.normal(size=(15, 2)), 0.7
    K = phi @ phi.T
    found = label_noise(K, y, ridge)
    left_out = leave_one_out(K, y, ridge).residuals.numpy()
    assert np.allclose(found.residuals, left_out)
    spread = np.sqrt(np.diag(np.linalg.inv(K + ridge * np.eye(15))))
    sizes = np.linalg.norm(left_out, axis=1) * spread
    assert np.allclose(found.scores, sizes / np.sqrt((sizes**2).mean()), rtol=1e-9)
    assert found.ranking.tolist() == np.argsort(-sizes).tolist()


def test_residuals_of_a_gaussian_process_have_the_expected_size():
    """Whether an example lies among the others or far off, its score is 1 on average."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=25), [4.0, 6.0, 9.0]])
    K, ridge = np.exp(-((x[:, None] - x) ** 2) / 2), 0.1
    root = np.linalg.cholesky(K + ridge * np.eye(28))
    draws = [label_noise(K, root @ rng.normal(size=(28, 3)), ridge).scores for _ in range(300)]
    mean_square = torch.stack(draws).square().mean(dim=0)
    assert torch.allclose(mean_square, torch.ones(28, dtype=torch.float64), atol=0.2)
    raw = [label_noise(K, root @ rng.normal(size=28), ridge).residuals.square() for _ in range(300)]
    sizes = torch.stack(raw).mean(dim=0)
    assert float(sizes.max() / sizes.min()) > 4  # without standardising they differ


def test_a_full_kernel_that_does_not_mix_outputs_gives_the_same():
    rng = np.random.default_rng(2)
    phi, y = rng.normal(size=(8, 10)), rng.normal(size=(8, 2))
    K = phi @ phi.T
    full = np.einsum("ij,ab->ijab", K, np.eye(2))
    for ridge in (0.5, None):
        one, other = label_noise(K, y, ridge), label_noise(full, y, ridge)
        assert torch.allclose(one.scores, other.scores, rtol=1e-8)
        assert one.ridge == pytest.approx(other.ridge)


def test_the_ridge_is_chosen_by_leave_one_out():
    rng = np.random.default_rng(3)
    phi, y = rng.normal(size=(20, 30)), rng.normal(size=20)
    kernel = kernel_matrix(phi @ phi.T)
    assert label_noise(kernel, y).ridge == ridge_path(kernel, y).best()


def test_flipped_digits_are_found():
    """5 % of 400 real labels flipped: of the 20 most suspicious ones, at least 17 are those."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(images))[:400]
    x, labels = torch.tensor(images[chosen] / 16), labels[chosen].copy()
    flipped = rng.permutation(400)[:20]
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, size=20)) % 10
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).double()
    K = InfiniteKernel(model, x[:2], parametrization="ntk").ntk(x)
    found = label_noise(K, np.eye(10)[labels] - 0.1)
    hits = np.isin(found.ranking[:20].numpy(), flipped).sum()
    assert hits >= 17
    suspects = found.suspects(2.0).numpy()
    assert np.isin(flipped, suspects).mean() >= 0.9  # hardly any escapes


def test_singular_kernels_printing_and_figure():
    twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(SingularKernel, match="expected size"):
        label_noise(twins, np.ones(3), 0.0)
    found = label_noise(twins, np.array([1.0, -1.0, 2.0]), 0.1)
    assert "most suspicious" in repr(found)
    assert len(found.figure().data) == 1
    assert set(found.to_dict()) == {"ridge", "residuals", "scores", "ranking"}
    nothing = label_noise(np.eye(3), np.zeros(3), 1.0)
    assert nothing.scores.tolist() == [0, 0, 0]
    with pytest.raises(InvalidInput, match="ridge"):
        label_noise(np.eye(3), np.ones(3), -1.0)
