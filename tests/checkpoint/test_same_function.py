# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Weights of other projects, loaded here, compute what they compute there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.modeling.swin import Swin
from tests.checkpoint.small import layout_doubled, layout_older, small_model, write_pickle
from tests.official_weights import official_mask2former


@pytest.fixture(scope="module")
def mask2former() -> Iterator[Any]:
    """``transformers``' Mask2Former, as small as it goes, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        embed_dim=16,
        depths=[2, 2, 1, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=swin,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=48,
            encoder_layers=2,
            decoder_layers=5,
            num_attention_heads=4,
            dim_feedforward=64,
            num_queries=10,
            num_labels=80,
            dropout=0.0,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    yield model


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("layout", [dict, layout_older, layout_doubled])
def test_computes_what_mask2former_computes(mask2former: Any, tmp_path: Path, layout: Any) -> None:
    """Backbone, deformable pixel decoder and masked-attention decoder, loaded from an official file."""
    official = layout(official_mask2former(mask2former))
    path = write_pickle(tmp_path / "model_final.pkl", {name: value.numpy() for name, value in official.items()})
    model = small_model().eval()
    AUSMCheckpointer(model).load(path)

    images = torch.randn(2, 3, 256, 288)
    with torch.no_grad():
        expected = mask2former(pixel_values=images, output_hidden_states=True, output_auxiliary_logits=True)
        features = model.encode(images)
        layers = model.pixel_decoder(
            features.multi_scale,
            features.mask_features,
            ids=torch.zeros(2, 0, 32),
            in_use=torch.zeros(2, 0, dtype=torch.bool),
            label_sets=["coco", "coco"],
        )
    for level, stage in zip(features.multi_scale, expected.pixel_decoder_hidden_states, strict=True):
        close(level, stage)
    close(features.mask_features, expected.pixel_decoder_last_hidden_state)
    close(layers[-1].class_logits, expected.class_queries_logits)
    close(layers[-1].mask_logits, expected.masks_queries_logits)
    for layer, auxiliary in zip(layers[:-1], expected.auxiliary_logits, strict=True):
        close(layer.mask_logits, auxiliary["masks_queries_logits"])


def test_swin_of_timm_through_its_classification_checkpoint(tmp_path: Path) -> None:
    """A classifier saved with the official names gives the same features in our backbone."""
    timm_swin = pytest.importorskip("timm.models.swin_transformer").SwinTransformer
    classifier = timm_swin(
        img_size=256, embed_dim=16, depths=(2, 2, 1, 2), num_heads=(1, 2, 4, 8), window_size=4, num_classes=7
    ).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_(std=0.1)
    official = {}
    for name, value in classifier.state_dict().items():
        stage, _, rest = name.removeprefix("layers.").partition(".")
        if rest.startswith("downsample"):  # official checkpoints close a stage with it, timm opens one
            name = f"layers.{int(stage) - 1}.{rest}"
        official[name.replace("head.fc.", "head.")] = value
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 16, 16)
    torch.save({"model": official}, tmp_path / "swin.pth")
    model = small_model().eval()
    AUSMCheckpointer(model).load(str(tmp_path / "swin.pth"))

    images = torch.randn(1, 3, 256, 256)
    backbone = model.frame_encoder.backbone
    assert isinstance(backbone, Swin)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        found = backbone(images)
    for feature, level in zip(found.values(), expected, strict=True):  # our norms still are what they start as
        close(feature, torch.nn.functional.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2]).permute(0, 3, 1, 2))
