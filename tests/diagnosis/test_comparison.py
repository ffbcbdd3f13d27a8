"""Comparison of architectures: every number against a direct computation."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import tangency as tg
from tangency.errors import InvalidInput, UnsupportedOperation


def data(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, torch.stack([torch.sin(x[:, 0]), x[:, 1] * x[:, 2]], dim=1)


def networks():
    torch.manual_seed(0)
    relu = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2))
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)
    attention = nn.Sequential(nn.Unflatten(1, (1, 6)), layer, nn.Flatten(), nn.Linear(6, 2))
    return {"relu": relu, "linear": nn.Linear(6, 2), "attention": attention.eval()}


def test_numbers_by_hand():
    x, y = data()
    models = networks()
    ridge = 1e-2
    found = tg.compare(models, x, y, ridge=ridge)
    assert [row.name for row in found.rows] == ["relu", "linear", "attention"]
    assert [row.kind for row in found.rows] == ["infinite", "infinite", "empirical"]
    assert found["relu"].reason is None
    assert "closed form" in found["attention"].reason
    kernels = {
        "relu": tg.InfiniteKernel(models["relu"], x).ntk(x),
        "attention": tg.EmpiricalKernel(models["attention"]).ntk(x),
    }
    n, labels = 24, y.double().numpy()
    for name, K in kernels.items():
        row, K = found[name], K.double().numpy()
        values = np.linalg.eigvalsh(K)
        assert row.max_learning_rate == pytest.approx(2 * n / values[-1], rel=1e-5)
        assert row.spectrum.condition_number == pytest.approx(values[-1] / values[0], rel=1e-3)
        p = values / values.sum()
        assert row.spectrum.effective_rank == pytest.approx(
            np.exp(-(p * np.log(p)).sum()), rel=1e-5
        )
        H = np.eye(n) - 1 / n
        A, B = H @ K @ H, H @ labels @ labels.T @ H
        cosine = (A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B)
        assert row.alignment == pytest.approx(cosine, rel=1e-5)
        absolute = ridge * K.diagonal().mean()
        assert row.ridge == pytest.approx(absolute, rel=1e-6)
        errors = []
        for i in range(n):
            others = np.delete(np.arange(n), i)
            fit = np.linalg.solve(
                K[np.ix_(others, others)] + absolute * np.eye(n - 1), labels[others]
            )
            errors.append(((labels[i] - K[i, others] @ fit) ** 2).sum())
        assert float(row.held_out.error) == pytest.approx(np.mean(errors), rel=1e-4)
        at_all = tg.estimated_learning_curve(torch.from_numpy(K), y.double(), n, absolute)
        assert float(row.curve.test_error[-1]) == pytest.approx(
            float(at_all.test_error[0]), rel=1e-4
        )
    assert found["relu"].parameters == 6 * 40 + 40 + 80 + 2
    means = [(labels.sum(axis=0) - labels[i]) / (n - 1) for i in range(n)]
    constant = np.mean([((labels[i] - means[i]) ** 2).sum() for i in range(n)])
    assert found.constant == pytest.approx(constant, rel=1e-6)
    assert found.best.name == "relu"


def test_kernels_on_request():
    x, y = data()
    models = [networks()["relu"]]
    empirical = tg.compare(models, x, y[:, 0], kernel="empirical")
    assert [(row.name, row.kind) for row in empirical.rows] == [("Sequential 0", "empirical")]
    assert math.isnan(empirical.rows[0].accuracy)
    he, lecun = (tg.compare(models, x, y, init=i).rows[0] for i in (tg.Init.he(), tg.Init.lecun()))
    assert float(he.kernel.matrix[0, 0]) != pytest.approx(float(lecun.kernel.matrix[0, 0]), rel=0.1)
    with pytest.raises(UnsupportedOperation):
        tg.compare([networks()["attention"]], x, y, kernel="infinite")


def test_result():
    x, y = data()
    found = tg.compare(networks(), x, y)
    text = repr(found)
    assert "attention: no infinite NTK" in text
    assert "stable step" in text
    json.dumps(found.to_dict(), default=lambda t: t.tolist())
    assert len(found.figure().data) == 2 * 3 + 2 * 3
    with pytest.raises(KeyError, match="relu"):
        found["none"]


def test_refusals():
    x, y = data()
    with pytest.raises(InvalidInput, match="empty"):
        tg.compare([], x, y)
    with pytest.raises(InvalidInput, match="one module"):
        tg.compare(nn.Linear(6, 2), x, y)
    with pytest.raises(InvalidInput, match="not an nn"):
        tg.compare({"f": torch.sin}, x, y)
    with pytest.raises(InvalidInput, match="ridge"):
        tg.compare(networks(), x, y, ridge=-1)
    with pytest.raises(InvalidInput, match="at least 4"):
        tg.compare(networks(), x[:2], y[:2])
    with pytest.raises(InvalidInput, match="one-hot"):
        tg.compare([networks()["relu"]], x, y[:, 0].long())
