# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from ausm_d2.training.ema import WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    layers[0].requires_grad_(False)
    return layers


def steps(weights: nn.Module, average: WeightAverage, count: int) -> list[float]:
    """``count`` steps that add 1 to the trained bias; the bias after each."""
    values = []
    for _ in range(count):
        with torch.no_grad():
            weights[1].bias += 1
        average.update()
        values.append(float(weights[1].bias.detach()))
    return values


def test_the_average_follows_its_definition() -> None:
    weights = model()
    expected = float(weights[1].bias.detach())
    average = WeightAverage(weights, decay=0.5)
    for n, value in enumerate(steps(weights, average, 40), start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert abs(float(average.state_dict()["1.bias"]) - expected) < 1e-5
    assert set(average.state_dict()) == {"1.weight", "1.bias", "steps"}  # what is frozen is the model's own


def test_the_model_has_averaged_weights_inside_the_context_only() -> None:
    weights = model()
    average = WeightAverage(weights, decay=0.9)
    steps(weights, average, 5)
    before, averaged = weights[1].bias.clone(), average.state_dict()["1.bias"]
    with average.applied():
        assert torch.equal(weights[1].bias, averaged) and not torch.equal(averaged, before)
    assert torch.equal(weights[1].bias, before)


def test_a_saved_average_continues_bit_for_bit() -> None:
    straight = model()
    whole = WeightAverage(straight, decay=0.9)
    steps(straight, whole, 8)

    first = model()
    begun = WeightAverage(first, decay=0.9)
    steps(first, begun, 3)
    second = model()
    second.load_state_dict(first.state_dict())
    resumed = WeightAverage(second, decay=0.9)
    resumed.load_state_dict({name: each.clone() if isinstance(each, torch.Tensor) else each
                             for name, each in begun.state_dict().items()})  # fmt: skip
    steps(second, resumed, 5)
    assert torch.equal(resumed.state_dict()["1.bias"], whole.state_dict()["1.bias"])
    assert resumed.state_dict()["steps"] == 8


def test_the_average_restarts_from_loaded_weights() -> None:
    weights = model()
    average = WeightAverage(weights, decay=0.9)
    steps(weights, average, 3)
    average.restart()
    assert torch.equal(average.state_dict()["1.bias"], weights[1].bias) and average.state_dict()["steps"] == 0
