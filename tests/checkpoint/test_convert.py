# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import get_cfg

from ausm_d2.checkpoint.convert import Origin, Status, convert
from ausm_d2.config import add_ausm_config
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from tests.checkpoint.small import as_mask2former, counts, layout_doubled, layout_older, small_model
from tests.official_weights import mask2former_shapes, swin_shapes, zeros


def test_mask2former_swin_t_fits_the_papers_model() -> None:
    """The names and shapes of the official file, at full size, against the default config."""
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.DEVICE", "cpu"])
    cfg.MODEL.AUSM.LABEL_SETS = [["coco", 80], ["object", 1]]
    cfg.MODEL.AUSM.COMPRESSOR.LAYERS = cfg.MODEL.AUSM.DECODER.LAYERS = 1  # not part of it
    target = AUSM(cfg).state_dict()
    shapes = mask2former_shapes(96, (2, 2, 6, 2), (3, 6, 12, 24), 7)
    conversion = convert(zeros(shapes), target)
    assert conversion.origin is Origin.MASK2FORMER
    assert not conversion.of(Status.FAILED, Status.RESIZED, Status.MATCHED)
    assert len(conversion.of(Status.RENAMED)) == len(shapes) - 12 - 1
    unused = {entry.source for entry in conversion.of(Status.UNUSED) if "relative_position_index" not in entry.source}
    assert unused == {"criterion.empty_weight"}
    random = {entry.target for entry in conversion.of(Status.RANDOM)}
    assert not any(name.startswith("frame_encoder.") for name in random)
    prefix = "pixel_decoder.class_embed.object"
    assert {name for name in random if name.startswith("pixel_decoder.")} == {
        f"{prefix}.weight",
        f"{prefix}.bias",
        "pixel_decoder.track_embed.weight",
    }
    conversion.check("file")
    # The windows of Swin-B's checkpoint are 12 wide; its width differs everywhere.
    wide = convert(zeros(mask2former_shapes(96, (2, 2, 6, 2), (3, 6, 12, 24), 12)), target)
    assert {tuple(wide.weights[entry.target].shape) for entry in wide.of(Status.RESIZED)} == {
        (169, heads) for heads in (3, 6, 12, 24)
    }
    assert len(wide.of(Status.RESIZED)) == 12 and not wide.of(Status.FAILED)
    with pytest.raises(UserError, match=r"frame_encoder\.backbone \(.*\(128, 3, 4, 4\) in the file, \(96, 3, 4, 4\)"):
        convert(zeros(mask2former_shapes(128, (2, 2, 18, 2), (4, 8, 16, 32), 12)), target).check("file")


@pytest.mark.parametrize("layout", [dict, layout_older, layout_doubled])
def test_all_layouts_of_mask2former_are_the_same_file(layout: Any) -> None:
    source, model = small_model(), small_model()
    plain = convert(as_mask2former(source), model.state_dict())
    other = convert(layout(as_mask2former(source)), model.state_dict())
    assert counts(other) == counts(plain)
    assert other.weights.keys() == plain.weights.keys()
    assert all(torch.equal(other.weights[name], value) for name, value in plain.weights.items())
    assert all(torch.equal(source.state_dict()[name], value) for name, value in plain.weights.items())


def test_a_module_that_should_match_and_does_not_fails() -> None:
    state, target = as_mask2former(small_model()), small_model().state_dict()
    del state["sem_seg_head.predictor.transformer_ffn_layers.3.norm.bias"]
    state["sem_seg_head.pixel_decoder.mask_features.weight"] = torch.zeros(16, 32, 1, 1)
    state["backbone.patch_embed.proj.bias"] = torch.full((16,), float("nan"))
    conversion = convert(state, target)
    failed = {entry.target: entry.reason for entry in conversion.of(Status.FAILED)}
    assert failed == {
        "pixel_decoder.transformer_ffn_layers.3.norm.bias": "in the model, not in the file",
        "frame_encoder.pixel_decoder.mask_features.weight": "(16, 32, 1, 1) in the file, (32, 32, 1, 1) in the model",
        "frame_encoder.backbone.patch_embed.proj.bias": "values that are not finite",
    }
    assert not failed.keys() & conversion.weights.keys()
    with pytest.raises(UserError, match=r"^stage1\.pkl: these Mask2Former weights do not fit the config: ") as error:
        conversion.check("stage1.pkl")
    assert "\n" not in str(error.value)


def test_every_tensor_of_both_is_accounted_for_once() -> None:
    state, target = as_mask2former(small_model()), small_model("MODEL.SWIN.WINDOW_SIZE", 6).state_dict()
    conversion = convert(state, target)
    assert sorted(entry.source for entry in conversion.entries if entry.source) == sorted(state)
    expected = [name for name in target if not name.endswith("relative_position_index")]
    assert sorted(entry.target for entry in conversion.entries if entry.target) == sorted(expected)
    table = conversion.table()
    for status in counts(conversion):
        assert status in table


def test_classifiers_of_other_label_sets() -> None:
    """Stage 2 starts from stage 1 with other label sets; Mask2Former's classes only go to COCO's classifier."""
    stage1 = small_model().state_dict()
    stage2 = small_model("MODEL.AUSM.LABEL_SETS", [["ytvis_2019", 40], ["object", 1]])
    conversion = convert(stage1, stage2.state_dict())
    conversion.check("file")
    assert [entry.target for entry in conversion.of(Status.RANDOM)] == [
        "pixel_decoder.class_embed.ytvis_2019.weight",
        "pixel_decoder.class_embed.ytvis_2019.bias",
    ]
    assert {entry.reason for entry in conversion.of(Status.UNUSED)} >= {"the config has no label set 'coco'"}
    with pytest.raises(UserError, match=r"class_embed .*ytvis_2019\.weight: a label set that the file does not have"):
        conversion.check("file", complete=True)

    more = convert(stage1, small_model("MODEL.AUSM.LABEL_SETS", [["coco", 79], ["object", 1]]).state_dict())
    with pytest.raises(UserError, match=r"\(81, 32\) in the file, \(80, 32\) in the model"):
        more.check("file")
    other = small_model("MODEL.AUSM.LABEL_SETS", [["coco", 79], ["object", 1]])
    coarse = convert(as_mask2former(small_model()), other.state_dict())
    coarse.check("file")
    assert any(entry.source == "sem_seg_head.predictor.class_embed.weight" for entry in coarse.of(Status.UNUSED))


def test_own_weights_of_another_config_are_refused() -> None:
    own = small_model().state_dict()
    assert counts(convert(own, small_model().state_dict())).keys() == {"matched", "not used"}
    for key, value, named in (
        ("MODEL.AUSM.COMPRESSOR.LAYERS", 2, r"compressor\.layers .*in the model, not in the file"),
        ("MODEL.AUSM.PIXEL_DECODER.LAYERS", 3, r"pixel_decoder\.transformer_.*in the file, not in the model"),
        ("MODEL.AUSM.NUM_ID", 7, r"id_pool\.embed .*\(6, 32\) in the file, \(7, 32\) in the model"),
    ):
        with pytest.raises(UserError, match=named):
            convert(own, small_model(key, value).state_dict()).check("file")


def test_a_deeper_swin_is_not_a_shallower_one() -> None:
    deeper = zeros(swin_shapes(16, (2, 2, 3, 2), (1, 2, 4, 8), 4))
    with pytest.raises(UserError, match=r"layers .*such as 2\.blocks\.1.*in the file, not in the model"):
        convert(deeper, small_model().state_dict()).check("file")


def test_position_tables_are_interpolated() -> None:
    """A table that is linear in the offsets stays so, with the same ends up to the kernel's reach."""
    side = torch.linspace(-1, 1, 13)
    table = torch.stack([side[:, None].expand(13, 13).flatten(), side.expand(13, 13).flatten()], dim=1)
    state = zeros(swin_shapes(16, (2, 2, 1, 2), (1, 2, 4, 8), 7))
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    state[name] = table
    resized = convert(state, small_model().state_dict()).weights[f"frame_encoder.backbone.{name}"]
    assert resized.shape == (49, 2)
    square = resized.view(7, 7, 2)
    torch.testing.assert_close(square[:, 3, 0], square[3, :, 1])  # rows in the first head, columns in the second
    assert torch.all(square[1:, :, 0] > square[:-1, :, 0])
    torch.testing.assert_close(square[3, 3], torch.zeros(2), atol=1e-6, rtol=0)


def test_file_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"no tensor of the file belongs to this model.*\['encoder\.weight'\]"):
        convert({"encoder.weight": torch.zeros(2)}, small_model().state_dict())


def test_parameters_of_the_loss_do_not_affect_the_conversion() -> None:
    with_it, without = small_model("MODEL.AUSM.TRAIN.FRAME_CLASS_WEIGHT", 1.0), small_model()
    for source, model in ((with_it, without), (without, with_it)):
        convert(source.state_dict(), model.state_dict()).check("file", complete=True)
