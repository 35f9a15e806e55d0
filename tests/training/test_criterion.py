# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The loss: targets, weights and normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ausm_d2.modeling import transfer
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.training import matcher
from ausm_d2.training.criterion import SetCriterion, points_around
from ausm_d2.training.matcher import HungarianMatcher
from ausm_d2.training.targets import FrameTargets

CLASSES, QUERIES = 3, 4


def criterion(deep_supervision: bool = True, num_points: int = 256, box_point_ratio: float = 0.0) -> SetCriterion:
    weights = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0}
    return SetCriterion(
        matcher=HungarianMatcher(**weights), **weights, no_object_weight=0.1, num_points=num_points,
        oversample_ratio=3.0, importance_sample_ratio=0.75, box_point_ratio=box_point_ratio,
        deep_supervision=deep_supervision,
    )  # fmt: skip


def frame(track: list[int], detect: list[int], visible: list[int], exhaustive: bool = True) -> FrameTargets:
    """One frame with two instances, left and right half of 32x32."""
    masks = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    masks[0, 0, :, :16], masks[0, 1, :, 16:] = bool(visible[0]), bool(visible[1])
    as_bool = [torch.tensor([each], dtype=torch.bool) for each in (visible, track, detect)]
    return FrameTargets(
        masks=masks, classes=torch.tensor([[0, 2]]), visible=as_bool[0], track=as_bool[1], detect=as_bool[2],
        labelled=torch.tensor([True]), exhaustive=torch.tensor([exhaustive]),
    )  # fmt: skip


def logits_of(masks: Tensor) -> Tensor:
    """Perfect logits at stride 4 of bool (B, N, 32, 32)."""
    return (masks[..., ::4, ::4].float() * 2 - 1) * 30


def perfect(targets: FrameTargets) -> Predictions:
    """Tracking rows and the first detection queries are correct; the other queries predict background."""
    classes = torch.full((1, 2 + QUERIES, CLASSES + 1), -30.0)
    masks = torch.full((1, 2 + QUERIES, 8, 8), -30.0)
    classes[..., CLASSES] = 30
    for i in range(2):
        for row, wanted in ((i, targets.track[0, i]), (2 + i, targets.detect[0, i])):
            if wanted and targets.visible[0, i]:
                classes[0, row, CLASSES] = -30
                classes[0, row, targets.classes[0, i]] = 30
                masks[0, row] = logits_of(targets.masks)[0, i]
    return Predictions(classes.requires_grad_(), masks.requires_grad_())


def test_correct_predictions_have_zero_loss() -> None:
    for targets in (frame([1, 0], [0, 1], [1, 1]), frame([1, 1], [0, 0], [0, 1]), frame([0, 0], [1, 1], [1, 1])):
        losses = criterion()([perfect(targets)], targets)
        # The bilinear edge between the halves is uncertain by half a cell.
        assert (
            sum(float(value.detach()) for name, value in losses.items() if "mask" not in name and "dice" not in name)
            < 1e-4
        )
        assert sum(losses.values()) < 3


def test_hidden_object_is_background_with_the_empty_mask() -> None:
    targets = frame([1, 0], [0, 0], [0, 0])
    silent = perfect(targets)
    losses = criterion()([silent], targets)
    assert losses["loss_trk_ce"] < 1e-4 and losses["loss_trk_mask"] < 1e-4 and losses["loss_trk_dice"] < 0.01
    loud = Predictions(silent.class_logits, torch.full_like(silent.mask_logits, 30.0))
    losses = criterion()([loud], targets)
    assert losses["loss_trk_mask"] > 100 and losses["loss_trk_dice"] > 4.9


def test_background_weighs_a_tenth_for_detections_and_one_for_tracks() -> None:
    """Uniform logits cost log 4 everywhere: the weighted means show the weights."""
    targets = frame([1, 0], [0, 1], [0, 1])
    classes = torch.zeros(1, 2 + QUERIES, CLASSES + 1)
    classes[0, 2:, CLASSES] = 1.0  # so that matched and unmatched rows differ
    losses = criterion()([Predictions(classes, torch.zeros(1, 2 + QUERIES, 8, 8))], targets)
    assert losses["loss_trk_ce"] == pytest.approx(2 * torch.tensor(4.0).log().item(), rel=1e-5)
    nats = torch.tensor([0.0, 0.0, 0.0, 1.0]).log_softmax(0)
    expected = -(nats[0] + 0.1 * (QUERIES - 1) * nats[3]) / (1 + 0.1 * (QUERIES - 1))
    assert losses["loss_det_ce"] == pytest.approx(2 * float(expected), rel=1e-5)


def test_without_exhaustive_labels_only_duplicates_of_tracks_are_background() -> None:
    targets = frame([1, 0], [0, 0], [1, 1], exhaustive=False)
    masks = torch.full((1, 2 + QUERIES, 8, 8), -30.0)
    masks[0, 3] = logits_of(targets.masks)[0, 0]  # detection 1 repeats the tracked object
    masks[0, 4] = logits_of(targets.masks)[0, 1]  # detection 2 finds the object that nobody labelled
    classes = torch.zeros(1, 2 + QUERIES, CLASSES + 1, requires_grad=True)
    criterion()([Predictions(classes, masks)], targets)["loss_det_ce"].backward()
    assert classes.grad is not None
    assert (classes.grad[0, 2:].abs().sum(-1) > 0).tolist() == [False, True, False, False]


def test_sums_are_normalised_across_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes that have six times the masks and weights of this one: each divides by a third of all."""
    targets = frame([1, 0], [0, 1], [1, 1])
    layer = Predictions(torch.zeros(1, 2 + QUERIES, CLASSES + 1), torch.zeros(1, 2 + QUERIES, 8, 8))
    torch.manual_seed(0)
    alone = criterion()([layer], targets)
    shared: list[Tensor] = []

    def all_reduce(totals: Tensor) -> None:
        shared.append(totals.clone())
        totals.mul_(6)

    monkeypatch.setattr("ausm_d2.training.criterion.get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    torch.manual_seed(0)  # the same points
    together = criterion()([layer], targets)
    [totals] = shared  # weights of the tracking and the detection rows, and masks
    torch.testing.assert_close(totals, torch.tensor([1.0, 1 + 0.1 * (QUERIES - 1), 2.0]))
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name] / 2)


def test_unlabelled_frames_have_no_loss() -> None:
    targets = frame([0, 0], [0, 0], [1, 1])
    targets.labelled[:] = False
    losses = criterion()([Predictions(torch.randn(1, 6, 4), torch.randn(1, 6, 8, 8))], targets)
    assert all(value == 0 for value in losses.values())


def test_every_layer_is_supervised_unless_switched_off() -> None:
    targets = frame([1, 0], [0, 1], [1, 1])
    layers = [perfect(targets)] * 3
    names = {"loss_trk_ce", "loss_trk_mask", "loss_trk_dice", "loss_det_ce", "loss_det_mask", "loss_det_dice"}
    assert set(criterion(deep_supervision=False)(layers, targets)) == names
    assert set(criterion()(layers, targets)) == {name + end for name in names for end in ("", "_0", "_1")}


class _Waits(TorchDispatchMode):
    """Counts device syncs: values that are read, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        self.count += by_mask or name in ("nonzero", "_local_scalar_dense", "masked_select")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("exhaustive", [True, False])
def test_ten_layers_have_as_many_device_syncs_as_one(exhaustive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = frame([1, 0], [0, 1], [1, 1], exhaustive)
    transfers: list[str] = []

    class Counted(transfer.Download):
        def wait(self) -> list[Tensor]:
            transfers.append("down")
            return super().wait()

    def upload(tensor: Tensor, device: torch.device) -> Tensor:
        transfers.append("up")
        return transfer.upload(tensor, device)

    monkeypatch.setattr(matcher, "Download", Counted)
    monkeypatch.setattr(matcher, "upload", upload)
    counts = []
    for layers in (1, 10):
        transfers.clear()
        with _Waits() as waits:
            criterion()([perfect(targets)] * layers, targets)
        counts.append(waits.count)
        assert transfers == ["down", "up"]
    assert counts[0] == counts[1] > 0


def test_each_layer_is_matched_separately() -> None:
    """The loss of a layer does not depend on other layers."""
    targets = frame([1, 0], [1, 1], [1, 1])
    first, second = perfect(targets), perfect(targets)
    rows = [0, 1, 5, 4, 3, 2]
    second = Predictions(second.class_logits[:, rows], second.mask_logits[:, rows])
    losses = criterion()([first, second], targets)
    for name in ("loss_trk_ce", "loss_det_ce", "loss_det_ce_0"):
        assert float(losses[name].detach()) < 1e-4
    for name in ("loss_det_mask", "loss_det_mask_0"):  # a mask in the wrong place costs more than 100
        assert float(losses[name].detach()) < 3


def test_losses_are_summed_in_float32() -> None:
    """A large object over 12,544 points: the sums exceed the range of float16."""
    wanted = frame([0, 0], [1, 1], [1, 1])
    logits = torch.full((1, 2 + QUERIES, 8, 8), -14.0)
    logits[0, 2, :, :4], logits[0, 3, :, 4:] = 14.0, 14.0
    predictions = Predictions(torch.zeros(1, 2 + QUERIES, CLASSES + 1), logits)
    loss = criterion(num_points=12544)
    torch.manual_seed(0)
    full = loss([predictions], wanted)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.float16):
        half = loss([Predictions(*(each.half() for each in predictions[:2]))], wanted)
    for name, value in full.items():
        assert float(half[name]) == pytest.approx(float(value), rel=2e-3, abs=2e-3), name


def test_box_points_lie_within_twice_the_box_of_a_mask() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(3, 64, 128, dtype=torch.bool)
    masks[0, 20:24, 100:110] = True  # rows 20 to 24, columns 100 to 110; the margin is 8 pixels at least
    masks[1, 10:50, 0:60] = True
    points = points_around(masks, 500) * torch.tensor([128.0, 64.0])
    low, high = points.amin(dim=1), points.amax(dim=1)
    wanted = torch.tensor([[92, 12, 118, 32], [0, 0, 90, 64], [0, 0, 128, 64]])  # the last mask is empty
    assert (low >= wanted[:, :2]).all() and (high <= wanted[:, 2:]).all()
    assert (torch.cat([low, high], dim=1) - wanted).abs().max() < 2


def test_box_points_give_small_objects_weight_in_the_loss() -> None:
    """4 x 4 pixels in 256 x 256: points of the whole frame mostly miss the object, and the loss is near zero."""
    torch.manual_seed(0)
    masks = torch.zeros(1, 2, 256, 256, dtype=torch.bool)
    masks[0, 0, 100:104, 60:64] = True
    targets = FrameTargets(
        masks=masks, classes=torch.tensor([[0, 2]]), visible=torch.tensor([[True, False]]),
        track=torch.tensor([[True, False]]), detect=torch.zeros(1, 2, dtype=torch.bool),
        labelled=torch.tensor([True]), exhaustive=torch.tensor([True]),
    )  # fmt: skip
    nothing = Predictions(torch.zeros(1, 2 + QUERIES, CLASSES + 1), torch.full((1, 2 + QUERIES, 64, 64), -6.0))
    bce = {}
    for ratio in (0.0, 0.5):
        losses = [criterion(False, 256, ratio)([nothing], targets)["loss_trk_mask"] for _ in range(20)]
        bce[ratio] = float(torch.stack(losses).mean())
    assert bce[0.5] > 8 * bce[0.0]
