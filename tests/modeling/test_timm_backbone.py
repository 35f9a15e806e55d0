# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.convert import Status, convert
from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.modeling.frame_encoder import FrameEncoder
from ausm_d2.modeling.timm_backbone import TimmBackbone
from tests.tiny import clip, tiny_model

TINY = "mobilenetv3_small_050"  # strides 2..32, batch norms
CONVNEXT = "convnext_atto"  # strides 4..32, no batch norm; timm renames its parts when it returns features


@pytest.mark.parametrize("name", [TINY, CONVNEXT])
def test_outputs_are_named_by_their_strides(name: str) -> None:
    backbone = TimmBackbone(name).eval()
    with torch.no_grad():
        out = backbone(torch.randn(2, 3, 64, 96))
    assert list(out) == ["res2", "res3", "res4", "res5"]
    for key, shape in backbone.output_shape().items():
        assert out[key].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32


def test_only_the_outputs_asked_for() -> None:
    backbone = TimmBackbone(TINY, out_features=("res2", "res3"))
    assert {key: value.shape[2:] for key, value in backbone(torch.randn(1, 3, 64, 64)).items()} == {
        "res2": (16, 16),
        "res3": (8, 8),
    }
    assert backbone.size_divisibility == 8


def test_frames_of_a_batch_do_not_meet_in_the_norms() -> None:
    backbone = TimmBackbone(TINY).train()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["res5"][:1], backbone(images[:1])["res5"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [TINY, CONVNEXT])
def test_frozen_stages_are_those_before_the_output(name: str) -> None:
    backbone = TimmBackbone(name, freeze_at=3)
    out = backbone(torch.randn(1, 3, 64, 64))
    assert [value.requires_grad for value in out.values()] == [False, False, True, True]
    out["res5"].sum().backward()
    trained = [parameter.grad is not None for parameter in backbone.parameters()]
    assert trained == sorted(trained) and 0 < sum(trained) < len(trained)
    assert all(parameter.requires_grad for parameter in TimmBackbone(name).parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet_nonsense"}, r"MODEL\.TIMM\.NAME: timm has no 'resnet_nonsense'"),
        ({"name": "vit_tiny_patch16_224"}, r"outputs of strides \[16, 16, 16\], missing are \['res2 \(stride 4\)'"),
        ({"name": TINY, "freeze_at": 7}, r"MODEL\.BACKBONE\.FREEZE_AT: 7, expected 0 or the number in one of \('res2'"),
        ({"name": TINY, "out_features": ("p2",)}, r"out_features: unknown \['p2'\]"),
    ],
)
def test_wrong_names_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TimmBackbone(**settings)


@pytest.mark.parametrize("name", [TINY, CONVNEXT])
def test_timms_classification_weights_load_by_name(tmp_path: Path, name: str) -> None:
    import timm

    classifier = timm.create_model(name).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    model = tiny_model("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name).eval()
    AUSMCheckpointer(model).load(str(tmp_path / "weights.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)[-1]
        found = model.frame_encoder.backbone(images)["res5"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    state = classifier.state_dict()
    del state[next(iter(state))]
    with pytest.raises(UserError, match=r"frame_encoder\.backbone \(1 tensor, .*in the model, not in the file"):
        convert(state, model.state_dict()).check("file")


def test_weights_under_other_names_load_by_order() -> None:
    """As EfficientNet-Lite's do: the shapes agree one by one, the classifier comes last."""
    model = tiny_model("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", TINY)
    prefix = "frame_encoder.backbone."
    own = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    foreign = {f"_part{i}": torch.randn(value.shape) for i, value in enumerate(own.values())}
    foreign["_part0.num_batches_tracked"] = torch.tensor(1)
    foreign["_fc.weight"] = torch.zeros(10, 1280)
    conversion = convert(foreign, model.state_dict())
    conversion.check("file")
    assert len(conversion.of(Status.RENAMED)) == len(own)
    assert all(conversion.weights[name] is foreign[f"_part{i}"] for i, name in enumerate(own))
    foreign["_part3"] = torch.zeros(5, 5)
    with pytest.raises(UserError, match="no tensor of the file belongs to this model"):
        convert(foreign, model.state_dict())


def test_detectron2s_resnet_weights_load_by_name() -> None:
    """As in detectron2://ImageNetPretrained/torchvision/*.pkl: no prefix, a classifier on the stem."""
    opts = [
        "MODEL.BACKBONE.NAME",
        "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES",
        ["res2", "res3", "res4", "res5"],
    ]
    model = tiny_model(*opts, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    state = {name: value + 1 for name, value in model.frame_encoder.backbone.state_dict().items()}
    conversion = convert(state | {"stem.fc.weight": torch.zeros(1000, 512)}, model.state_dict())
    conversion.check("file")
    assert all(conversion.weights[f"frame_encoder.backbone.{name}"] is value for name, value in state.items())
    assert [entry.source for entry in conversion.of(Status.UNUSED)] == ["stem.fc.weight"]


@pytest.mark.parametrize("name", ["ausm_nano", "ausm_nano_swin", "ausm_nano_timm", "ausm_nano_resnet"])
def test_configs_of_each_backbone(name: str) -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "synth" / f"{name}.yaml"
    encoder = FrameEncoder(load_config(str(config)))
    assert encoder(torch.randn(1, 3, 64, 96)).x.shape[2:] == (8, 12)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.BACKBONE.NAME", "build_swin_backbone"],
        ["MODEL.BACKBONE.NAME", "build_convnet_backbone"],
        ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", TINY],
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        ],
    ],
    ids=["swin", "convnet", "timm", "resnet"],
)
def test_two_training_steps_with_each_backbone(opts: list) -> None:
    model = tiny_model(*opts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: value.detach().clone() for name, value in model.frame_encoder.named_parameters()}
    for _ in range(2):
        losses = model([clip(2, 2, seed=1)])
        loss = sum(losses.values())
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [name for name, value in model.frame_encoder.named_parameters() if torch.equal(value, before[name])]
    assert not still
