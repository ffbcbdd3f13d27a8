"""What cuDNN is told while derivatives are computed, and that it is told back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tangency.empirical.cudnn import exact_cudnn

CUDNN = torch.backends.cudnn


def state() -> tuple[bool, bool]:
    return CUDNN.enabled, CUDNN.allow_tf32


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    enabled, allowed = state()
    yield
    CUDNN.enabled = enabled
    CUDNN.allow_tf32 = allowed


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_full_precision_and_the_users_settings_after(enabled: bool, allowed: bool) -> None:
    CUDNN.enabled, CUDNN.allow_tf32 = enabled, allowed
    with exact_cudnn(nn.Conv1d(2, 3, 1)):
        assert state() == (enabled, False)
    assert state() == (enabled, allowed)


def test_recurrent_layers_without_a_backward_pass() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.LSTM(2, 3))
    CUDNN.enabled = True
    with exact_cudnn(model):
        assert CUDNN.enabled  # in training mode it has one
    with exact_cudnn(model.eval()):
        assert not CUDNN.enabled
    assert CUDNN.enabled


def test_settings_come_back_after_an_error() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), exact_cudnn(nn.LSTM(2, 3).eval()):
        raise ZeroDivisionError
    assert state() == before


@pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="PyTorch before 2.9")
def test_what_was_told_apart_stays() -> None:
    CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision = "tf32", "ieee"
    with exact_cudnn(nn.Conv1d(2, 3, 1)):
        assert (CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision) == ("tf32", "ieee")
    assert (CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision) == ("tf32", "ieee")
