# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Folder trees with label images: DAVIS, YouTube-VOS, MOSE, and a user's own."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.data.build import build_test_loader, build_train_loader, get_records
from ausm_d2.data.catalog import register_davis_style, register_from_config
from ausm_d2.data.catalog.vos import load_records
from ausm_d2.data.check import check_dataset
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.names import subfolders
from tests.data.disk import SIZE, square, write_davis, write_frame, write_json, write_labels, write_tree
from tests.data.stubs import small_cfg


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def tree(root: Path) -> VideoRecord:
    """The only video of a user's folder tree."""
    register_davis_style("own_val", str(root / "images"), str(root / "masks"))
    (record,) = DatasetCatalog.get("own_val")
    return record


def test_davis(root: Path) -> None:
    write_davis(root)
    (record,) = DatasetCatalog.get("davis_2017_val")
    assert (record.video_id, record.height, record.width, record.length) == ("val_clip", *SIZE, 3)
    assert record.labelled == [True] * 3
    assert record.prompt_frames is not None and dict(record.prompt_frames) == {1: 0, 2: 1}  # 2 appears late
    assert record.masks is not None and np.array_equal(record.masks.read(2)[2], square(2, offset=10))
    copied = pickle.loads(pickle.dumps(record))
    assert copied.masks.read(1).keys() == {1, 2} and copied.frames[0].shape == (*SIZE, 3)
    assert [r.name for r in DatasetCatalog.get("davis_2017_train")] == ["train_clip"]
    metadata = MetadataCatalog.get("davis_2017_train")
    assert (metadata.task, metadata.label_set, metadata.exhaustive, metadata.overlap) == ("vos", "object", False, False)
    item = next(iter(build_train_loader(small_cfg("davis_2017_train"))))[0]
    assert item["masks"].shape[:2] == (2, 4) and item["classes"].tolist() == [0, 0]
    batch = next(iter(build_test_loader(small_cfg(), "davis_2017_val")))
    assert batch[0]["task"] == "vos" and batch[0]["record"].name == "val_clip"


def test_list_with_windows_line_ends_and_byte_order_mark(root: Path) -> None:
    write_davis(root)
    (root / "DAVIS/ImageSets/2017/val.txt").write_bytes(b"\xef\xbb\xbfval_clip\r\n\r\ntrain_clip\r\n")
    assert [record.name for record in DatasetCatalog.get("davis_2017_val")] == ["val_clip", "train_clip"]


def test_a_listed_video_that_is_missing_is_an_error(root: Path) -> None:
    write_davis(root)
    with open(root / "DAVIS/ImageSets/2017/val.txt", "a") as file:
        file.write("blackswan\n")
    with pytest.raises(UserError, match=r"480p/blackswan: the frames of video 'blackswan' are missing"):
        DatasetCatalog.get("davis_2017_val")


def test_the_error_lists_all_candidate_paths(root: Path) -> None:
    with pytest.raises(UserError, match=r"davis_2017_val: .* looked for .*DAVIS/ImageSets/2017/val\.txt, "):
        get_records("davis_2017_val")
    with pytest.raises(UserError, match=r"mose_train: no folder found; looked for .*mose/train"):
        get_records("mose_train")
    with pytest.raises(
        UserError, match=r"youtubevos_2018_val: no meta\.json found; looked for .*ytbvos/valid/meta\.json"
    ):
        get_records("youtubevos_2018_val")


def test_mose_validation_has_masks_in_the_first_frame_only(root: Path) -> None:
    write_tree(root / "mose/valid/JPEGImages", root / "mose/valid/Annotations", "a1")
    for t in (1, 2):
        (root / f"mose/valid/Annotations/a1/{t:05d}.png").unlink()
    (record,) = DatasetCatalog.get("mose_val")
    assert record.labelled == [True, False, False]
    assert record.prompt_frames is not None and dict(record.prompt_frames) == {1: 0}
    assert record.masks is not None and record.masks.read(1) == {}
    write_tree(root / "mose/train/JPEGImages", root / "mose/train/Annotations", "b1", frames=6)
    (root / "mose/train/Annotations/b1/00003.png").unlink()
    items = [
        item for batch, _ in zip(build_train_loader(small_cfg("mose_train")), range(6), strict=False) for item in batch
    ]
    assert all(3 not in item["frame_indices"] and item["labelled"].all() for item in items)


# YouTube-VOS


META: dict[str, Any] = {
    "1": {"category": "person", "frames": ["00000", "00010", "00020"]},
    "4": {"category": "ape", "frames": ["00010", "00020"]},
}


def write_youtube_vos(root: Path, objects: Any = None, base: str = "ytbvos/valid") -> Path:
    folder = root / base
    for t in (0, 5, 10, 15, 20):
        write_frame(folder / f"JPEGImages/clip/{t:05d}.jpg")
    write_labels(folder / "Annotations/clip/00000.png", square(0) * 1)
    write_labels(folder / "Annotations/clip/00010.png", square(2, offset=10) * 4)
    return write_json(folder / "meta.json", {"videos": {"clip": {"objects": META if objects is None else objects}}})


@pytest.mark.parametrize("base", ["ytbvos/valid", "ytbvos2019/valid", "ytbvos/2019/valid"])
def test_youtube_vos_late_objects_and_sparse_frames(root: Path, base: str) -> None:
    write_youtube_vos(root, base=base)
    (record,) = DatasetCatalog.get("youtubevos_2019_val")
    assert record.prompt_frames == {1: 0, 4: 2}
    assert [i.instance_id for i in record.instances] == [1, 4]
    assert record.extra == {"scored_frames": [0, 2, 4], "object_categories": {1: "person", 4: "ape"}}
    assert record.labelled == [True, False, True, False, False]
    assert record.masks is not None and list(record.masks.read(2)) == [4]
    assert MetadataCatalog.get("youtubevos_2019_val").evaluator_type == "ytvos"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([], r"videos\.clip\.objects: an object with one entry per object"),
        ({"one": META["1"]}, r"videos\.clip\.objects\.one: a number with a list 'frames' expected"),
        ({"1": {"category": "person"}}, r"videos\.clip\.objects\.1: a number with a list 'frames'"),
        ({"1": {"frames": ["00007"]}}, r"videos\.clip\.objects\.1\.frames: '00007' found, which is no frame"),
    ],
)
def test_broken_meta_json(root: Path, objects: Any, message: str) -> None:
    write_youtube_vos(root, objects)
    with pytest.raises(UserError, match=r"meta\.json: " + message):
        DatasetCatalog.get("youtubevos_2018_val")


def test_categories_seen_in_training(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_youtube_vos(root)
    metadata = MetadataCatalog.get("youtubevos_2019_val")
    broken = {"1": [1], "2": {"frames": ["00000"]}, "3": {"category": ["ape"]}}
    write_youtube_vos(root, broken, base="ytbvos/train")
    assert DatasetCatalog.get("youtubevos_2019_val") and metadata.get("seen_categories") is None
    assert "train/meta.json: left out 3 objects without a 'category'" in caplog.text
    write_youtube_vos(root, {**broken, "4": {"category": "ape", "frames": ["00000"]}}, base="ytbvos/train")
    assert DatasetCatalog.get("youtubevos_2019_val") and metadata.seen_categories == {"ape"}


def test_meta_json_without_videos(root: Path) -> None:
    path = write_youtube_vos(root)
    for data in ({}, [], {"videos": []}):
        path.write_text(json.dumps(data))
        with pytest.raises(UserError, match=r"meta\.json: field 'videos'"):
            DatasetCatalog.get("youtubevos_2018_val")


# One's own, and what may be wrong with a tree


def test_a_users_folder_tree_by_one_line_of_config(root: Path) -> None:
    write_tree(root / "cells/images", root / "cells/masks", "a")
    write_tree(root / "cells/images", root / "cells/masks", "b")
    (root / "cells/some.txt").write_text("b\n")
    cfg = small_cfg("cells_train")
    cfg.DATASETS.DAVIS_STYLE = [
        ["cells_train", "cells/images", "cells/masks"],
        ["cells_val", "cells/images", "cells/masks", "cells/some.txt"],
    ]
    assert next(iter(build_train_loader(cfg)))[0]["label_set"] == "object"
    assert [batch[0]["record"].name for batch in build_test_loader(cfg, "cells_val")] == ["b"]


def test_two_data_sets_of_one_name_are_refused(root: Path) -> None:
    cfg = small_cfg("cells_train")
    cfg.DATASETS.DAVIS_STYLE = [["cells_train", "a", "b"], ["cells_train", "a", "c"]]
    with pytest.raises(UserError, match=r"DATASETS\.DAVIS_STYLE: 'cells_train' is the name of another entry too"):
        register_from_config(cfg)


def test_frames_are_in_natural_order(root: Path) -> None:
    for name in ("1", "2", "10"):
        write_frame(root / f"images/a/{name}.jpg")
        write_labels(root / f"masks/a/{name}.png", square(0) * 1)
    (root / "images/a/.DS_Store").write_bytes(b"")
    assert tree(root).frames.names == ["1", "2", "10"]


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "I;16", "RGB"])
def test_every_kind_of_mask_picture(root: Path, mode: str) -> None:
    from PIL import Image

    write_frame(root / "images/a/0.jpg")
    labels = square(0).astype(np.uint8)
    write_labels(root / "masks/a/0.png", labels)
    picture = Image.fromarray(labels)
    if mode == "1":
        picture = Image.fromarray(labels * 255).convert("1")
    elif mode == "I;16":
        picture = Image.fromarray(labels.astype(np.uint16) * 300)
    elif mode in ("LA", "RGB"):
        picture = picture.convert(mode)
    if mode != "P":
        picture.save(root / "masks/a/0.png")
    masks = tree(root).masks
    assert masks is not None
    ((object_id, mask),) = masks.read(0).items()
    assert object_id == (300 if mode == "I;16" else 1) and np.array_equal(mask, square(0))


def test_a_colour_mask_is_an_error(root: Path) -> None:
    from PIL import Image

    write_frame(root / "images/a/0.jpg")
    (root / "masks/a").mkdir(parents=True)
    Image.fromarray(np.stack([square(0) * 128, square(0) * 0, square(0) * 0], axis=2).astype(np.uint8)).save(
        root / "masks/a/0.png"
    )
    masks = tree(root).masks
    assert masks is not None
    with pytest.raises(UserError, match=r"0\.png: a picture in colours \(mode RGB\)"):
        masks.read(0)


def test_video_without_frames_is_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(root / "images", root / "masks", "a")
    (root / "images/b").mkdir()
    (root / "masks/b").mkdir()
    with caplog.at_level(logging.WARNING):
        assert tree(root).name == "a"
    assert "left out 1 videos of 0 frames" in caplog.text


def test_masks_that_are_missing_or_fit_no_frame(root: Path) -> None:
    write_tree(root / "images", root / "masks", "a")
    for file in sorted((root / "masks/a").iterdir()):
        file.rename(file.with_name("mask_" + file.name))
    with pytest.raises(UserError, match=r"masks/a: no mask file has the name of a frame \(such as 00000\.png\)"):
        _ = tree(root).height
    shutil.rmtree(root / "masks/a")
    (record,) = load_records(root / "images", root / "masks", ["a"])
    with pytest.raises(UserError, match=r"masks/a: the masks of this video are missing"):
        _ = record.masks


def test_real_davis_sequences(shared_data: Path) -> None:
    images, masks = shared_data / "davis_dev/JPEGImages/480p", shared_data / "davis_dev/Annotations/480p"
    records = load_records(images, masks, subfolders(images))
    assert [(r.name, r.length) for r in records] == [
        ("blackswan", 50), ("camel", 90), ("car-roundabout", 75), ("cows", 104), ("dog", 60),
    ]  # fmt: skip
    for record in records:
        assert (record.height, record.width) == (480, 854) == record.frames[3].shape[:2]
        assert record.prompt_frames is not None and dict(record.prompt_frames) == {1: 0}
        assert record.labelled == [True] * record.length and record.masks is not None
        assert 0.02 < record.masks.read(0)[1].mean() < 0.3


# What matches nothing, or twice


def found_in(root: Path, name: str = "clips_val") -> list[str]:
    video_list = root / "list.txt"
    register_davis_style(
        name, str(root / "images"), str(root / "masks"), str(video_list) if video_list.exists() else ""
    )
    return check_dataset(name).problems


def test_two_pictures_for_one_frame_are_refused(root: Path) -> None:
    write_tree(root / "images", root / "masks", "a")
    write_frame(root / "images/a/00001.png")
    with pytest.raises(UserError, match=r"images/a: two pictures for one frame, '00001\.jpg' and '00001\.png'"):
        tree(root)
    assert found_in(root)[0].endswith("'00001.jpg' and '00001.png'")


@pytest.mark.parametrize("shift", [1, -1])
def test_shifted_numbers_of_masks_are_refused(root: Path, shift: int) -> None:
    write_tree(root / "images", root / "masks", "a", frames=4)
    for folder, file in (("masks" if shift > 0 else "images", "png" if shift > 0 else "jpg"),):
        files = sorted((root / folder / "a").iterdir(), reverse=True)
        for path in files:
            path.rename(path.with_name(f"{int(path.stem) + 1:05d}.{file}"))
    with pytest.raises(UserError, match=rf"masks/a: masks are numbered from .*: the numbers are shifted by {shift}"):
        _ = tree(root).masks
    assert any("the numbers are shifted" in text for text in found_in(root))


def test_masks_without_a_frame_and_frames_without_a_mask_are_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tree(root / "images", root / "masks", "a", frames=6)
    (root / "masks/a/00003.png").rename(root / "masks/a/extra.png")
    assert tree(root).labelled == [True, True, True, False, True, True]
    _ = tree(root).labelled
    messages = [
        f"{root}/masks/a: 1 of 6 masks have the name of no frame (such as 'extra')",
        f"{root}/masks/a: 1 of 6 frames have no mask (such as '00003'); they count as frames without labels",
    ]
    assert [record.getMessage() for record in caplog.records] == messages, "each is said once"
    assert found_in(root) == messages


@pytest.mark.parametrize("labelled", [[0, 2, 4], [0], [0, 3], [1, 2]])
def test_sparse_masks_are_no_problem(root: Path, labelled: list[int]) -> None:
    write_tree(root / "images", root / "masks", "a", frames=5)
    for t in set(range(5)) - set(labelled):
        (root / f"masks/a/{t:05d}.png").unlink()
    assert found_in(root) == []


def test_videos_listed_twice_and_videos_without_masks_are_named(root: Path) -> None:
    for video in ("a", "b"):
        write_tree(root / "images", root / "masks", video)
    shutil.copytree(root / "images/a", root / "images/c")
    assert found_in(root) == [f"{root}/images: 1 videos have no folder in {root}/masks (such as 'c'); left out"]
    (root / "list.txt").write_text("a\r\nb\r\na\r\n../a\n")
    assert found_in(root) == [
        f"{root}/list.txt: '../a' found, the name of a folder expected",
        f"{root}/list.txt: video 'a' is listed twice (1 lines too many); each counts once",
    ]
    (root / "list.txt").write_text("a\nb\na\n")
    assert [record.name for record in DatasetCatalog.get("clips_val")] == ["a", "b"]
