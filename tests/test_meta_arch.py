# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The meta-architecture in training: losses, gradients, batches of all kinds."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.errors import UserError
from tests.tiny import ONE_LAYER, clip, tiny_model


@pytest.mark.parametrize("mode", ["parallel", "iterative", "rollout"])
@pytest.mark.parametrize("prompt_index", ["frame", "zero"])
def test_every_training_mode_gives_finite_losses_and_gradients(mode: str, prompt_index: str) -> None:
    model = tiny_model("MODEL.AUSM.TRAIN.MODE", mode, "MODEL.AUSM.PROMPT_INDEX", prompt_index,
                       "MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED", mode == "parallel")  # fmt: skip
    losses = model([clip(3, 3), clip(3, 2, label_set="object", seed=4)])
    assert len(losses) == 6 * 4  # six losses after each of three layers, and before the first
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not trained"
        assert torch.isfinite(parameter.grad).all(), name


def test_empty_clip_and_one_frame_clip() -> None:
    model = tiny_model()
    for items in ([clip(3, 0)], [clip(1, 2)], [clip(1, 0), clip(1, 1)]):
        losses = model(items)
        assert all(torch.isfinite(value) for value in losses.values())
        if all(len(item["classes"]) == 0 for item in items):
            assert losses["loss_trk_mask"] == 0 and losses["loss_det_dice"] == 0 and losses["loss_det_ce"] > 0


def test_clips_of_different_sizes_share_a_batch() -> None:
    model = tiny_model()
    small = clip(2, 1)
    small["image"], small["masks"] = small["image"][..., :40, :50], small["masks"][..., :40, :50]
    losses = model([small, clip(2, 2)])
    assert all(torch.isfinite(value) for value in losses.values())


def test_training_lowers_the_loss_by_half() -> None:
    model = tiny_model("MODEL.AUSM.TRAIN.PROMPT_PROB", 1.0, *ONE_LAYER)
    items = [clip(2, 2, seed=5)]
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
    history = []
    for _ in range(24):
        loss = sum(model(items).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(float(loss))
    assert sum(history[-5:]) < 0.5 * sum(history[:5])


@pytest.mark.parametrize(
    "variant", [("START", "lookup"), ("START", "residual"), ("PIXEL_DECODER.QUERIES", "proposals")]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_training_step_in_half_precision_is_finite(dtype: torch.dtype, variant: tuple[str, str]) -> None:
    opts = [f"MODEL.AUSM.{variant[0]}", variant[1], "MODEL.AUSM.TRAIN.OWN_PASSES", 1, *ONE_LAYER]
    model = tiny_model(*opts)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    items = [clip(3, 2, seed=1), clip(3, 1, label_set="object", seed=2)]
    history = []
    for _ in range(2):
        with torch.autocast("cpu", dtype):
            losses = model(items)
        total = sum(losses.values())
        assert total.dtype == torch.float32 and all(torch.isfinite(loss) for loss in losses.values())
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        history.append(float(total.detach()))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert torch.isfinite(sum(model(items).values()))


def test_unknown_choices_and_label_sets_are_named() -> None:
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.TRAIN\.MODE: 'both' is not one of parallel"):
        tiny_model("MODEL.AUSM.TRAIN.MODE", "both")
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.SPATIAL_REDUCTION: 0, expected 1 or more"):
        tiny_model("MODEL.AUSM.SPATIAL_REDUCTION", 0)
    with pytest.raises(UserError, match="no label set 'coco'"):
        tiny_model()([clip(2, 1, label_set="coco")])


@pytest.mark.parametrize("queries", ["learned", "proposals"])
@pytest.mark.parametrize("label_set", ["synthvis", "object"])
def test_every_parameter_has_a_gradient_whatever_the_label_sets_of_the_batch(label_set: str, queries: str) -> None:
    """Distributed training waits for all of them."""
    model = tiny_model("MODEL.AUSM.TRAIN.FRAME_CLASS_WEIGHT", 1.0, "MODEL.AUSM.PIXEL_DECODER.QUERIES", queries)
    sum(model([clip(3, 2, label_set=label_set, seed=1)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_small_objects_are_not_to_be_detected() -> None:
    model, item = tiny_model("MODEL.AUSM.TRAIN.DETECT_CELLS", 26), clip(2, 1)
    (smaller,) = (each.detect for each in [model._preprocess(model.collate([item])[1])[2]])
    item["masks"][:, :, :, :90] |= item["masks"].any(dim=3, keepdim=True)
    (larger,) = (each.detect for each in [model._preprocess(model.collate([item])[1])[2]])
    assert not smaller.any() and larger.any()


def test_a_frozen_frame_encoder_is_the_same_in_training_mode() -> None:
    model = tiny_model("MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", "encoder", "MODEL.SWIN.DROP_PATH_RATE", 0.9).train()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.encode(images).x, model.encode(images).x)
    assert model.pixel_decoder.training


def test_checkpointing_saves_memory_and_changes_no_result() -> None:
    """With the stochastic depth of a frame encoder that learns too: the same blocks are left out both times."""
    kept, losses, gradients = [], [], []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        model = tiny_model(
            *("MODEL.AUSM.TRAIN.CHECKPOINTING", checkpointing, "MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 2),
            *("MODEL.SWIN.DROP_PATH_RATE", 0.5, "MODEL.SWIN.DEPTHS", [2, 2, 2, 2]),
        )
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            torch.manual_seed(1)
            loss = sum(model([clip(3, 2)]).values())
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(*losses) and kept[1] < 0.17 * kept[0]  # no kind of block is left out
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
