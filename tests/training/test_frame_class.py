# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from ausm_d2.training.frame_class import FrameClassifier
from ausm_d2.training.targets import FrameTargets
from tests.tiny import clip, tiny_model


def targets(classes: list[list[int]], **changes: torch.Tensor) -> FrameTargets:
    """Two frames of 32 x 32: object 1 is the upper half, object 2 an eighth at the lower left."""
    masks = torch.zeros(2, 2, 32, 32, dtype=torch.bool)
    masks[:, 0, :16], masks[:, 1, 16:, :8] = True, True
    seen = torch.ones(2, 2, dtype=torch.bool)
    values = {"labelled": torch.ones(2, dtype=torch.bool), "exhaustive": torch.ones(2, dtype=torch.bool)} | changes
    return FrameTargets(masks=masks, classes=torch.tensor(classes), visible=seen, track=seen, detect=seen, **values)


def indifferent(weight: float = 1.0) -> FrameClassifier:
    classifier = FrameClassifier(8, label_sets={"few": 3, "many": 7}, weight=weight)
    for parameter in classifier.parameters():
        torch.nn.init.zeros_(parameter)
    return classifier


def test_the_loss_of_a_uniform_classifier_is_the_formula() -> None:
    x = torch.randn(2, 8, 4, 4)
    loss = indifferent(2.0)(x, targets([[0, 2], [1, 1]]), ["few", "few"])["loss_frame_ce"]
    assert float(loss) == pytest.approx(2.0 * (1 + 0.3) * math.log(4))


def test_every_object_weighs_the_same() -> None:
    """Object 1 has four times the area of object 2; both are wrong by the same amount."""
    classifier = indifferent()
    classifier.class_embed["few"].bias.data[0] = 3.0  # everywhere class 0
    x = torch.zeros(2, 8, 4, 4)
    partial = torch.zeros(2, dtype=torch.bool)
    losses = [
        float(classifier(x, targets([pair, pair], exhaustive=partial), ["few"] * 2)["loss_frame_ce"])
        for pair in ([0, 1], [1, 0])
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_frames_without_labels_and_heads_of_their_own() -> None:
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    classifier = indifferent()
    labelled = torch.tensor([True, False])
    classifier.class_embed["many"].bias.data[6] = 9.0
    loss = classifier(x, targets([[0, 2], [6, 6]], labelled=labelled), ["few", "many"])["loss_frame_ce"]
    # The frame without labels has no say; the background is averaged over the two label sets.
    assert float(loss) == pytest.approx(math.log(4) * (1 + 0.3 / 2))
    loss.backward()
    assert not x.grad[1].any()


def test_a_model_with_frame_classification_reports_its_loss() -> None:
    model = tiny_model("MODEL.AUSM.TRAIN.FRAME_CLASS_WEIGHT", 1.0)
    losses = model([clip(2, 2, seed=1), clip(2, 1, label_set="object", seed=2)])
    losses["loss_frame_ce"].backward()
    assert model.frame_encoder.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    assert "loss_frame_ce" not in tiny_model()([clip(2, 2, seed=1)])
