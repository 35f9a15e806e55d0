# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from torch import Tensor

from ausm_d2.config import add_ausm_config
from ausm_d2.errors import UserError
from ausm_d2.modeling.deformable_attention import MSDeformAttn
from ausm_d2.modeling.frame_encoder import FrameEncoder, MultiScaleDecoder
from ausm_d2.modeling.swin import Swin


def config(*opts: object) -> CfgNode:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    small: list = ["MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8]]
    small += ["MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.SWIN.WINDOW_SIZE", 4, "MODEL.AUSM.HIDDEN_DIM", 32]
    small += ["MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 2, "MODEL.AUSM.FRAME_ENCODER.NUM_HEADS", 4]
    small += ["MODEL.AUSM.FRAME_ENCODER.DIM_FEEDFORWARD", 48, "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    cfg.merge_from_list([*small, *opts])
    return cfg


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1)


@pytest.mark.parametrize("layers", [0, 2])
def test_shapes(layers: int) -> None:
    encoder = FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", layers))
    out = encoder(torch.randn(2, 3, 64, 96))
    assert out.x.shape == (2, 32, 8, 12)
    assert out.mask_features.shape == (2, 32, 16, 24)
    assert [tuple(level.shape[1:]) for level in out.multi_scale] == [(32, 2, 3), (32, 4, 6), (32, 8, 12)]
    assert out.x is out.multi_scale[-1]


def test_features_are_resized_with_channels_last() -> None:
    """Also for a single frame; otherwise every resizing copies them twice."""
    with torch.no_grad():
        out = FrameEncoder(config())(torch.randn(1, 3, 64, 96))
    for features in (*out.multi_scale, out.mask_features):
        resized = F.interpolate(features, scale_factor=2, mode="bilinear")
        assert resized.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layers", [0, 2])
def test_frames_do_not_see_each_other(layers: int) -> None:
    encoder = FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", layers)).eval()
    frames = torch.randn(3, 3, 64, 96)  # with fewer cells a group norm makes much of rounding
    with torch.no_grad():
        together = encoder(frames)
        alone = [encoder(frame[None]) for frame in frames]
    for name in ("x", "mask_features"):
        expected = torch.cat([getattr(out, name) for out in alone])
        torch.testing.assert_close(getattr(together, name), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [0, 2])
def test_every_parameter_learns_from_what_is_used(layers: int) -> None:
    encoder = FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", layers))
    randomise(encoder.pixel_decoder)
    out = encoder(torch.randn(1, 3, 64, 64))
    (out.x.square().sum() + out.mask_features.square().sum()).backward()
    still = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("layers", [0, 2])
def test_the_fine_level_sees_the_coarse_ones(layers: int) -> None:
    decoder = MultiScaleDecoder(
        [4, 4, 4, 4], conv_dim=32, mask_dim=16, enc_layers=layers, num_heads=4, num_points=4, dim_feedforward=32
    )
    levels = [torch.randn(1, 4, 32 >> i, 32 >> i, requires_grad=True) for i in range(4)]
    decoder(levels).x.square().sum().backward()
    for level in levels[1:]:
        assert level.grad is not None and level.grad.any()


def test_deformable_attention_by_hand() -> None:
    """One head, one level, one point with an offset of 1.5 pixels to the right: the mean of two neighbours."""
    attention = MSDeformAttn(4, num_levels=1, num_heads=1, num_points=1)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor([1.5, 0.0]))
        for layer in (attention.value_proj, attention.output_proj):
            layer.weight.copy_(torch.eye(4))
    feature = torch.randn(1, 4, 2, 5)
    tokens = feature.flatten(2).transpose(1, 2)
    out = attention(torch.randn(1, 10, 4), tokens, [(2, 5)]).transpose(1, 2).unflatten(2, (2, 5))
    beyond = F.pad(feature, (0, 2))  # zeros outside the level
    torch.testing.assert_close(out, (beyond[..., 1:-1] + beyond[..., 2:]) / 2, atol=1e-5, rtol=1e-4)


def test_pixel_decoder_equals_mask2former() -> None:
    """The independent implementation of ``transformers`` with the same weights."""
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    settings = reference.Mask2FormerConfig(
        feature_size=64,
        mask_feature_size=48,
        encoder_layers=2,
        num_attention_heads=4,
        encoder_feedforward_dim=96,
        dropout=0.0,
    )
    channels = [16, 32, 64, 128]
    theirs = reference.Mask2FormerPixelDecoder(settings, channels).eval()
    ours = MultiScaleDecoder(
        channels, conv_dim=64, mask_dim=48, enc_layers=2, num_heads=4, num_points=4, dim_feedforward=96
    ).eval()
    randomise(theirs)
    renamed = {
        "level_embed": "transformer.level_embed",
        "input_projections": "input_proj",
        "encoder.layers": "transformer.encoder.layers",
        "self_attn_layer_norm": "norm1",
        "final_layer_norm": "norm2",
        "fc1": "linear1",
        "fc2": "linear2",
        "mask_projection": "mask_features",
        "adapter_1.0": "adapter_1",
        "adapter_1.1": "adapter_1.norm",
        "layer_1.0": "layer_1",
        "layer_1.1": "layer_1.norm",
    }

    def rename(name: str) -> str:
        for old, new in renamed.items():
            name = name.replace(old, new)
        return name

    ours.load_state_dict({rename(name): value for name, value in theirs.state_dict().items()})
    features = [torch.randn(2, width, 24 >> i, 40 >> i) for i, width in enumerate(channels)]
    with torch.no_grad():
        expected = theirs(features, output_attentions=False, output_hidden_states=False, return_dict=True)
        found = ours(features)

    def close(a: Tensor, b: Tensor) -> None:
        assert a.shape == b.shape and (a - b).norm() <= 1e-4 * b.norm()

    close(found.mask_features, expected.mask_features)
    for level, reference_level in zip(found.multi_scale, expected.multi_scale_features, strict=True):
        close(level, reference_level)


def test_mask2formers_name_for_swin_is_understood() -> None:
    assert isinstance(FrameEncoder(config("MODEL.BACKBONE.NAME", "D2SwinTransformer")).backbone, Swin)


def test_the_outputs_of_a_backbone_may_have_other_names() -> None:
    levels = ["res2", "res3", "res4", "res5"]
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", levels]
    opts += ["MODEL.FPN.IN_FEATURES", levels, "MODEL.FPN.OUT_CHANNELS", 16]
    encoder = FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.IN_FEATURES", ["p2", "p3", "p4", "p5"], *opts))
    assert encoder(torch.randn(1, 3, 64, 96)).x.shape == (1, 32, 8, 12)


def test_wrong_backbones_are_named() -> None:
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.NAME: unknown backbone 'build_swim_backbone'"):
        FrameEncoder(config("MODEL.BACKBONE.NAME", "build_swim_backbone"))
    with pytest.raises(UserError, match=r"IN_FEATURES: the backbone has no output \['res6'\]"):
        FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.IN_FEATURES", ["res2", "res6"]))
    with pytest.raises(UserError, match=r"IN_FEATURES: .*strides \[8, 16\], expected 4, 8, 16, 32"):
        FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.IN_FEATURES", ["res3", "res4"]))
    with pytest.raises(UserError, match=r"IN_FEATURES: \['res2'\] have strides \[4\], expected 4, 8, 16, 32"):
        FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.IN_FEATURES", ["res2"]))


def test_heads_share_the_channels_equally() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide the 8 channels"):
        MSDeformAttn(8, num_levels=1, num_heads=3, num_points=1)


@pytest.mark.parametrize("backbone", ["build_swin_backbone", "build_convnet_backbone", "build_resnet_backbone"])
@pytest.mark.parametrize("freeze_at", ["none", "backbone", "encoder"])
def test_what_is_frozen_has_no_gradient_whatever_the_backbone(freeze_at: str, backbone: str) -> None:
    resnet = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "GN"]
    resnet += ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
    opts = ["MODEL.BACKBONE.NAME", backbone, "MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", freeze_at, *resnet]
    encoder = FrameEncoder(config("MODEL.SWIN.DROP_PATH_RATE", 0.9, *opts)).train()
    assert encoder.backbone.training == (freeze_at == "none")
    assert encoder.pixel_decoder.training == (freeze_at != "encoder")
    out = encoder(torch.randn(1, 3, 64, 96))
    assert out.x.requires_grad == (freeze_at != "encoder")
    if out.x.requires_grad:
        (out.x.sum() + out.mask_features.sum()).backward()
    learned = {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None}
    expected = {"none": {"backbone", "pixel_decoder"}, "backbone": {"pixel_decoder"}, "encoder": set()}
    assert learned == expected[freeze_at]


def test_a_backbone_that_does_not_freeze_by_stage_says_so() -> None:
    for backbone in ("build_swin_backbone", "build_convnet_backbone"):
        with pytest.raises(UserError, match=rf"MODEL\.BACKBONE\.FREEZE_AT: 2, but {backbone} does not support it"):
            FrameEncoder(config("MODEL.BACKBONE.NAME", backbone, "MODEL.BACKBONE.FREEZE_AT", 2))
    with pytest.raises(UserError, match=r"FRAME_ENCODER\.FREEZE_AT: 'stem' is not one of none, backbone, encoder"):
        FrameEncoder(config("MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", "stem"))
