# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Parameter groups and gradient clipping, against rules written out here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ausm_d2.errors import UserError
from ausm_d2.training.solver import build_optimizer
from tests.tiny import tiny_cfg, tiny_model

NORMS = (nn.LayerNorm, nn.GroupNorm)


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    opts = ("MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 1, "MODEL.AUSM.FRAME_ENCODER.NUM_HEADS", 4)
    cfg, model = tiny_cfg(*opts), tiny_model(*opts)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.WEIGHT_DECAY = 1e-4, 0.1, 0.05
    groups = build_optimizer(cfg, model).param_groups
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(model.parameters()))

    kinds = {id(p): type(module) for module in model.modules() for p in module.parameters(recurse=False)}
    free = ("level_embed", "relative_position_bias_table", "x_start", ".A_log", ".D", "dt_proj.bias")
    without = set()
    for name, parameter in model.named_parameters():
        no_decay = issubclass(kinds[id(parameter)], (*NORMS, nn.Embedding)) or name.endswith(free)
        without |= {name} if no_decay else set()
        group = of[id(parameter)]
        assert group["weight_decay"] == (0.0 if no_decay else 0.05), name
        assert group["lr"] == pytest.approx(1e-5 if ".backbone." in name else 1e-4), name
    for part in ("id_pool", "query_feat", "track_embed", "dt_proj.bias", "A_log", "level_embed", "norm_time"):
        assert any(part in name for name in without), part
    assert not any(name.endswith(("dt_proj.weight", "out_proj.weight")) for name in without)


def test_frozen_parameters_are_in_no_group() -> None:
    opts = ("MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", "backbone")
    model = tiny_model(*opts)
    groups = build_optimizer(tiny_cfg(*opts), model).param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if ".backbone." not in name}


def test_parts_of_the_model_have_rates_of_their_own_and_zero_freezes() -> None:
    cfg, model = tiny_cfg(), tiny_model()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER = 1e-4, 0.1
    cfg.SOLVER.MULTIPLIERS = [["pixel_decoder.class_embed.", 20], ["pixel_decoder.", 0.5], ["compressor.", 0]]
    rates = {id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("compressor.")) == (id(parameter) in rates), name
        expected = 2e-3 if ".class_embed." in name else 5e-5 if name.startswith("pixel_decoder.") else 1e-4
        expected = 1e-5 if ".backbone." in name else expected
        assert rates.get(id(parameter), expected) == pytest.approx(expected), name


@pytest.mark.parametrize(
    "entry", ["compressor.", ["compressor.", -1], ["compressor."], ["compresor.", 1], ["compressor.", "1"]]
)
def test_rates_of_parts_that_do_not_exist_are_refused(entry: object) -> None:
    cfg, model = tiny_cfg(), tiny_model()
    cfg.SOLVER.MULTIPLIERS = [entry]
    with pytest.raises(UserError, match=r"SOLVER\.MULTIPLIERS: .*compres"):
        build_optimizer(cfg, model)


def test_a_beginning_of_names_is_text() -> None:
    cfg = tiny_cfg()
    cfg.SOLVER.MULTIPLIERS = [[5, 1]]
    with pytest.raises(UserError, match=r"SOLVER\.MULTIPLIERS: \[5, 1\], expected \[beginning of names, factor"):
        build_optimizer(cfg, tiny_model())


def test_the_gradient_of_the_whole_model_is_clipped_before_a_step() -> None:
    cfg = tiny_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    model = tiny_model()
    optimizer = build_optimizer(cfg, model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = torch.cat([grad.flatten() for grad in before]).norm()
    optimizer.step()
    for parameter, grad in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, grad * 0.01 / norm, rtol=1e-4, atol=1e-9)

    for parameter in model.parameters():  # below the limit nothing is changed
        parameter.grad = torch.full_like(parameter, 1e-7)
    optimizer.step()
    assert all((parameter.grad == 1e-7).all() for parameter in model.parameters())
