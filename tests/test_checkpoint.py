# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ausm_d2.checkpoint import AUSMCheckpointer, Conversion, Origin, Status, convert, read_checkpoint
from ausm_d2.config import add_ausm_config
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.swin import Swin
from tests.official_weights import mask2former_shapes, official_mask2former, swin_shapes, zeros


def small_config(*opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    small: dict[str, Any] = {
        "SWIN.EMBED_DIM": 16,
        "SWIN.DEPTHS": [2, 2, 1, 2],
        "SWIN.NUM_HEADS": [1, 2, 4, 8],
        "SWIN.WINDOW_SIZE": 4,
        "SWIN.DROP_PATH_RATE": 0.0,
        "AUSM.HIDDEN_DIM": 32,
        "AUSM.NUM_ID": 6,
        "AUSM.HEADS": [["coco", 80], ["object", 1]],
        "AUSM.FRAME_ENCODER.ENC_LAYERS": 2,
        "AUSM.FRAME_ENCODER.NUM_HEADS": 4,
        "AUSM.FRAME_ENCODER.DIM_FEEDFORWARD": 48,
        "AUSM.COMPRESSOR.LAYERS": 1,
        "AUSM.COMPRESSOR.HEAD_DIM": 16,
        "AUSM.COMPRESSOR.DIM_FEEDFORWARD": 48,
        "AUSM.DECODER.LAYERS": 1,
        "AUSM.DECODER.HEAD_DIM": 16,
        "AUSM.DECODER.DIM_FEEDFORWARD": 48,
        "AUSM.PIXEL_DECODER.LAYERS": 4,
        "AUSM.PIXEL_DECODER.HEAD_DIM": 8,
        "AUSM.PIXEL_DECODER.DIM_FEEDFORWARD": 64,
        "AUSM.PIXEL_DECODER.NUM_DET": 10,
    }
    cfg.merge_from_list([x for key, value in small.items() for x in (f"MODEL.{key}", value)] + list(opts))
    return cfg


def small_model(*opts: Any) -> AUSM:
    return AUSM(small_config(*opts))


def counts(conversion: Conversion) -> dict[str, int]:
    return {str(status): len(conversion.of(status)) for status in Status if conversion.of(status)}


def as_mask2former(model: AUSM) -> dict[str, Tensor]:
    """The model's own weights under Mask2Former's names."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("frame_encoder.backbone."):
            state[name.removeprefix("frame_encoder.")] = value
        elif name.startswith("frame_encoder.pixel_decoder."):
            state[f"sem_seg_head.{name.removeprefix('frame_encoder.')}"] = value
        elif name.startswith("pixel_decoder.class_embed.coco."):
            state[name.replace("pixel_decoder.class_embed.coco.", "sem_seg_head.predictor.class_embed.")] = value
        elif name.startswith("pixel_decoder.") and "class_embed" not in name and "track_embed" not in name:
            state[name.replace("pixel_decoder.", "sem_seg_head.predictor.", 1)] = value
    return state | {"criterion.empty_weight": torch.ones(81)}


def layout_older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    older = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for name, value in state.items()}
    return {name.replace("query_feat", "static_query"): value for name, value in older.items()}


def layout_doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    doubled = "sem_seg_head.pixel_decoder.pixel_decoder."
    return {name.replace("sem_seg_head.pixel_decoder.", doubled): value for name, value in state.items()}


def write_pickle(path: Path, state: dict[str, Any], **more: Any) -> str:
    path.write_bytes(pickle.dumps({"model": state, "__author__": "somebody", **more}, protocol=2))
    return str(path)


# --- the same function ------------------------------------------------------------------------------------------------


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
            heads=["coco", "coco"],
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


# --- the account ------------------------------------------------------------------------------------------------------


def test_mask2former_swin_t_fits_the_papers_model() -> None:
    """The names and shapes of the official file, at full size, against the default config."""
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.DEVICE", "cpu"])
    cfg.MODEL.AUSM.HEADS = [["coco", 80], ["object", 1]]
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
    head = "pixel_decoder.class_embed.object"
    assert {name for name in random if name.startswith("pixel_decoder.")} == {
        f"{head}.weight",
        f"{head}.bias",
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


def test_heads_of_other_label_sets() -> None:
    """Stage 2 starts from stage 1 with other heads; Mask2Former's classes only go to COCO's head."""
    stage1 = small_model().state_dict()
    stage2 = small_model("MODEL.AUSM.HEADS", [["ytvis_2019", 40], ["object", 1]])
    conversion = convert(stage1, stage2.state_dict())
    conversion.check("file")
    assert [entry.target for entry in conversion.of(Status.RANDOM)] == [
        "pixel_decoder.class_embed.ytvis_2019.weight",
        "pixel_decoder.class_embed.ytvis_2019.bias",
    ]
    assert {entry.reason for entry in conversion.of(Status.UNUSED)} >= {"the config has no head 'coco'"}
    with pytest.raises(UserError, match=r"class_embed .*ytvis_2019\.weight: a head that the file does not have"):
        conversion.check("file", complete=True)

    more = convert(stage1, small_model("MODEL.AUSM.HEADS", [["coco", 79], ["object", 1]]).state_dict())
    with pytest.raises(UserError, match=r"\(81, 32\) in the file, \(80, 32\) in the model"):
        more.check("file")
    other = small_model("MODEL.AUSM.HEADS", [["coco", 79], ["object", 1]])
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


# --- reading ----------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("legacy", [False, True, None])
def test_code_in_a_checkpoint_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool | None
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"model": {"weight": torch.zeros(2)}, "config": Evil()}
    if legacy is None:
        Path("file").write_bytes(pickle.dumps(data))
    else:
        torch.save(data, "file", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"^file: refused, it holds '(posix|nt)\.system'; "):
        read_checkpoint("file")
    assert not Path("evil").exists()


def test_objects_are_refused_by_name(tmp_path: Path) -> None:
    for name, write in (("a.pkl", lambda data, path: path.write_bytes(pickle.dumps(data))), ("b.pth", torch.save)):
        write({"model": {}, "cfg": CfgNode({"A": 1})}, tmp_path / name)
        with pytest.raises(UserError, match=r"refused, it holds 'fvcore\.common\.config\.CfgNode|detectron2\.config"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles_of_arrays_tensors_and_values(tmp_path: Path, protocol: int) -> None:
    data = {
        "model": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=torch.ones(2, dtype=torch.float16)),
        "c": {"lr": 0.1, "sizes": {1, 2}, "name": "x", "raw": b"\x00\xff", "scalar": np.float64(2.5), "none": None},
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    read = read_checkpoint(tmp_path / "x.pkl")
    torch.testing.assert_close(read["model"]["a"], torch.arange(6.0).view(2, 3))
    torch.testing.assert_close(read["model"]["b"], torch.ones(2, dtype=torch.float16))
    assert read["c"] == data["c"]


def test_files_of_torch_save(tmp_path: Path) -> None:
    data = {"state_dict": {"a": torch.ones(2), "b": np.ones(2)}, "epoch": np.int64(3)}
    for legacy in (False, True):
        torch.save(data, tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
        read = read_checkpoint(tmp_path / "x.bin")
        assert read["epoch"] == 3
        torch.testing.assert_close(read["model"]["b"], torch.ones(2, dtype=torch.float64))
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pth")
    assert read_checkpoint(tmp_path / "bare.pth")["model"].keys() == {"a"}


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(1000)}}, buffer)
    whole = buffer.getvalue()
    for name, content in (
        ("empty.pth", b""),
        ("text.pkl", b"not a checkpoint"),
        ("half.pth", whole[: len(whole) // 2]),
        ("half.pkl", pickle.dumps({"model": {"a": np.ones(1000)}})[:500]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a checkpoint, or damaged"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match=r"missing\.pth' does not exist"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list, expected a dictionary"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"model": {"a": "text"}}, tmp_path / "named.pth")
    with pytest.raises(UserError, match="'a' is a str, expected a dense tensor"):
        read_checkpoint(tmp_path / "named.pth")


# --- the checkpointer -------------------------------------------------------------------------------------------------


def test_save_and_resume(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model.x_start.sum().backward()
    optimizer.step()
    AUSMCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000004", iteration=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]

    again = small_model()
    other = torch.optim.AdamW(again.parameters())
    more = AUSMCheckpointer(again, str(tmp_path), complete=True, optimizer=other).resume_or_load("", resume=True)
    assert more["iteration"] == 4
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_weights_for_inference_have_to_be_complete(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "m2f.pkl", {k: v.numpy() for k, v in as_mask2former(small_model()).items()})
    AUSMCheckpointer(small_model()).load(path)
    with pytest.raises(UserError, match=r"m2f\.pkl: these Mask2Former weights do not fit .*compressor\.layers"):
        AUSMCheckpointer(small_model(), complete=True).load(path)


def test_nothing_is_loaded_when_something_does_not_fit(tmp_path: Path) -> None:
    state = as_mask2former(small_model())
    state["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(11, 32)
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"query_feat.*\(11, 32\) in the file, \(10, 32\) in the model"):
        AUSMCheckpointer(model).load(write_pickle(tmp_path / "x.pkl", state))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_weights_are_named() -> None:
    with pytest.raises(UserError, match=r"^MODEL\.WEIGHTS: weights file 'nowhere/x\.pth' does not exist$"):
        AUSMCheckpointer(small_model()).load("nowhere/x.pth")
    assert AUSMCheckpointer(small_model()).load("") == {}


def test_shipped_weights_are_found_by_their_address_and_a_missing_one_is_named() -> None:
    local = PathManager.get_local_path("ausm://some.pth")
    assert local.endswith(os.path.join("ausm_d2", "weights", "some.pth"))
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: weights file 'ausm://some\.pth' does not exist"):
        AUSMCheckpointer(torch.nn.Linear(1, 1)).load("ausm://some.pth")


def test_a_loss_of_training_decides_nothing_about_the_weights() -> None:
    with_it, without = small_model("MODEL.AUSM.TRAIN.FRAME_CLASS_WEIGHT", 1.0), small_model()
    for source, model in ((with_it, without), (without, with_it)):
        convert(source.state_dict(), model.state_dict()).check("file", complete=True)


def test_object_vectors_can_be_trained_from_weights_without_them_but_not_the_other_way() -> None:
    marker, vectors = small_model(), small_model("MODEL.AUSM.PROPAGATE", "vectors")
    conversion = convert(marker.state_dict(), vectors.state_dict())
    conversion.check("file")
    assert {entry.target.split(".")[0] for entry in conversion.of(Status.RANDOM)} == {"object_vectors"}
    with pytest.raises(UserError, match=r"object_vectors .*which the file was not trained with"):
        conversion.check("file", complete=True)
    with pytest.raises(UserError, match=r"object_vectors .*in the file, not in the model"):
        convert(vectors.state_dict(), marker.state_dict()).check("file")
