# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer

from ausm_d2.config import add_ausm_config
from ausm_d2.errors import UserError
from ausm_d2.modeling.swin import Swin, build_swin_backbone


def tiny(**changes: object) -> Swin:
    return Swin(
        **{"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4} | changes  # type: ignore[arg-type]
    )


def config(*opts: object) -> CfgNode:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    cfg.merge_from_list(list(opts))
    return cfg


def test_outputs_are_named_as_the_resnets_name_theirs() -> None:
    backbone = tiny().eval()
    with torch.no_grad():
        out = backbone(torch.randn(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(out) == list(shapes) == ["res2", "res3", "res4", "res5"]
    for name, feature in out.items():
        shape = shapes[name]
        assert feature.shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert [shapes[name].stride for name in out] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32


def test_only_the_stages_asked_for() -> None:
    backbone = tiny(out_features=("res3", "res5"))
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["res3", "res5"]
    assert not any(name.startswith(("norm0.", "norm2.")) for name in backbone.state_dict())


def test_swin_t_has_the_official_names_and_shapes() -> None:
    state = build_backbone(config()).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["patch_embed.proj.weight"] == (96, 3, 4, 4)
    assert shapes["patch_embed.norm.weight"] == (96,)
    for i, depth in enumerate([2, 2, 6, 2]):
        width, heads = 96 << i, 3 << i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            assert shapes[f"{block}.attn.relative_position_bias_table"] == (169, heads)
            assert shapes[f"{block}.attn.relative_position_index"] == (49, 49)
            assert shapes[f"{block}.attn.qkv.weight"] == (3 * width, width)
            assert shapes[f"{block}.attn.proj.weight"] == (width, width)
            assert shapes[f"{block}.mlp.fc1.weight"] == (4 * width, width)
            assert shapes[f"{block}.mlp.fc2.weight"] == (width, 4 * width)
            assert shapes[f"{block}.norm1.weight"] == shapes[f"{block}.norm2.weight"] == (width,)
        assert shapes[f"norm{i}.weight"] == (width,)
        if i < 3:
            assert shapes[f"layers.{i}.downsample.norm.weight"] == (4 * width,)
            assert shapes[f"layers.{i}.downsample.reduction.weight"] == (2 * width, 4 * width)
    # 27,519,354 without its classifier (timm says the same), whose one last norm gives way to one norm per stage.
    parameters = sum(value.numel() for name, value in state.items() if not name.endswith("relative_position_index"))
    assert parameters == 27_519_354 - 2 * 768 + 2 * (96 + 192 + 384 + 768)


def test_equals_timm() -> None:
    """timm's own Swin with the same weights; its downsampling opens a stage where Detectron2's closes one."""
    reference = pytest.importorskip("timm.models.swin_transformer").SwinTransformer(
        img_size=256, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4, num_classes=0
    )
    ours = tiny().eval()
    with torch.no_grad():
        for parameter in [*reference.parameters(), *ours.parameters()]:
            parameter.normal_(std=0.1)
    weights = {}
    for name, value in reference.eval().state_dict().items():
        stage, _, rest = name.removeprefix("layers.").partition(".")
        if rest.startswith("downsample"):
            name = f"layers.{int(stage) - 1}.{rest}"
        weights[name] = value
    unused = ours.load_state_dict(weights, strict=False)
    assert unused.unexpected_keys == ["norm.weight", "norm.bias"]
    missing = {name.split(".")[0] for name in unused.missing_keys if not name.endswith("relative_position_index")}
    assert missing == {"norm0", "norm1", "norm2", "norm3"}

    images = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        expected = reference.forward_intermediates(images, intermediates_only=True)
        found = ours(images)
    for i, (feature, level) in enumerate(zip(found.values(), expected, strict=True)):
        norm = getattr(ours, f"norm{i}")
        level = F.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2], norm.weight, norm.bias).permute(0, 3, 1, 2)
        assert (feature - level).norm() <= 1e-4 * level.norm()


@pytest.mark.parametrize("window", [4, 7])
def test_equals_detectron2s_own_forward_where_windows_are_padded(window: int) -> None:
    backbone = tiny(window_size=window, drop_path_rate=0.0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.1)
    images = torch.randn(2, 3, 72, 104)  # grids of 18 x 26, 9 x 13, 5 x 7 and 3 x 4
    found, expected = backbone(images).values(), SwinTransformer.forward(backbone, images).values()
    gradients = []
    for features in (found, expected):
        loss = sum((feature**2).mean() for feature in features)
        gradients.append(torch.autograd.grad(loss, list(backbone.parameters())))
    for one, other in [*zip(found, expected, strict=True), *zip(*gradients, strict=True)]:
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.SWIN.DEPTHS", [2, 2, 2], r"MODEL\.SWIN\.DEPTHS: .*expected 4"),
        ("MODEL.SWIN.NUM_HEADS", [3, 6, 12, 25], r"MODEL\.SWIN\.NUM_HEADS: 25 heads .*768 channels"),
    ],
)
def test_contradictory_keys_are_named(key: str, value: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_swin_backbone(config(key, value), ShapeSpec(channels=3))
