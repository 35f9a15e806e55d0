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
from ausm_d2.errors import UserError
from ausm_d2.modeling.swin import Swin
from ausm_d2.training import forms
from ausm_d2.training.teacher_forcing import TeacherForcing
from tests.checkpoint.small import layout_doubled, layout_older, small_model, write_pickle
from tests.official_weights import official_mask2former
from tests.streaming.opened import open_stream


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


RESIDUAL = ("MODEL.AUSM.START", "residual", "MODEL.AUSM.DECODER.LAYERS", 2, "MODEL.AUSM.COMPRESSOR.LAYERS", 2)


def test_residual_start_is_mask2former_on_an_unprompted_first_frame(mask2former: Any, tmp_path: Path) -> None:
    """At iteration 0, to 1e-4: as training computes it, and as a stream does."""
    official = official_mask2former(mask2former)
    path = write_pickle(tmp_path / "model_final.pkl", {name: value.numpy() for name, value in official.items()})
    model = small_model(*RESIDUAL, "MODEL.AUSM.NUM_ID", 16).eval()
    AUSMCheckpointer(model).load(path)
    frames = torch.randint(0, 256, (1, 3, 3, 64, 96), dtype=torch.uint8)
    images = model.normalise(frames)
    never = torch.zeros(1, 3, 1, dtype=torch.bool)  # no object is in A, and so none in M
    nothing = TeacherForcing(torch.full((1, 1), 3), never, torch.zeros(1, 3, 1, 16, 24), never, never)
    with torch.no_grad():
        expected = mask2former(pixel_values=images[:, 0])
        ids = model.id_pool(torch.zeros(1, 1, dtype=torch.int64))
        trained = forms.parallel(model, images, ids, nothing, ["coco"]).layers[-1]
        frame = frames[0, 0].permute(1, 2, 0).numpy()
        streamed = open_stream(model, label_set="coco", fg_threshold=0.0).step(frame)
    close(trained.class_logits[:1, 1:], expected.class_queries_logits)
    close(trained.mask_logits[:1, 1:], expected.masks_queries_logits)

    probabilities, masks = expected.class_queries_logits[0].softmax(-1)[:, :-1], expected.masks_queries_logits[0]
    order = probabilities.sum(-1).argsort(descending=True)
    order = order[(masks[order] > 0).flatten(1).any(dim=1)]  # the stream takes the surest first, and no empty masks
    close(streamed.probabilities.float(), probabilities[order])
    close(streamed.mask_logits, masks[order])


def test_residual_start_keeps_every_level_of_the_frame_encoder_and_learns() -> None:
    model = small_model(*RESIDUAL, "MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES", [8, 32])
    features = model.encode(torch.randn(2, 3, 64, 96))
    g = model.decoder(features.x, torch.randn_like(features.x))
    memory, mask_features = model.decoder_features(features.x, g, features.mask_features, features.multi_scale)
    assert torch.equal(memory[0], features.multi_scale[2]) and torch.equal(memory[1], features.multi_scale[0])
    assert torch.equal(mask_features, features.mask_features) and not model.mask_gate.any()
    sum((level * torch.randn_like(level)).sum() for level in memory).backward()
    for layer in model.decoder.layers:  # silent, but not dead
        for silent in (layer.self_attn.out_proj, layer.cross_attn.out_proj, layer.ffn.linear2):
            assert silent.weight.grad.abs().max() > 0 == silent.weight.abs().max()

    with torch.no_grad():
        model.mask_gate.fill_(0.5)
        changed, with_gate = model.decoder_features(
            features.x, features.x + 1, features.mask_features, features.multi_scale
        )
    torch.testing.assert_close(changed[1], features.multi_scale[0] + 1)
    torch.testing.assert_close(with_gate, features.mask_features + 0.5)


def test_residual_start_needs_the_levels_that_it_adds_to() -> None:
    with pytest.raises(UserError, match=r"MEMORY_STRIDES: \[32, 16, 8\], expected at most 16, the coarsest"):
        small_model(*RESIDUAL, "MODEL.AUSM.FRAME_ENCODER.IN_FEATURES", ["res2", "res3", "res4"])


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
