# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""COCO images as one-frame videos, also with the classes of the video benchmarks."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from ausm_d2.data.augmentation.plan import ClipPlan
from ausm_d2.data.augmentation.render import render_mask
from ausm_d2.data.build import build_train_loader, get_records
from ausm_d2.data.catalog import annotations as reading
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.catalog.coco import (
    COCO_CLASSES,
    COCO_SUPER_CLASSES,
    COCO_TO_OVIS,
    COCO_TO_YTVIS_2019,
    COCO_TO_YTVIS_2021,
)
from ausm_d2.data.catalog.ytvis import OVIS_CLASSES, YTVIS_2019_CLASSES, YTVIS_2021_CLASSES
from ausm_d2.data.check import check_dataset
from ausm_d2.data.mask_sources import ListedMasks
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.io import read_json
from tests.data.disk import SIZE, write_frame, write_json
from tests.data.stubs import small_cfg

SQUARE = [4.0, 4.0, 16.0, 4.0, 16.0, 16.0, 4.0, 16.0]


def data() -> dict[str, Any]:
    """A person and a kite in image 7, a crowd of persons and a cat in image 8."""
    crowd = {"size": list(SIZE), "counts": [0, 48, SIZE[0] * SIZE[1] - 48]}
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (7, 8, 9)],
        "categories": [{"id": i, "name": name} for i, name in COCO_CLASSES.items()],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": [SQUARE], "bbox": [4, 4, 12, 12]},
            {"id": 2, "image_id": 7, "category_id": 38, "iscrowd": 0, "segmentation": [SQUARE]},
            {"id": 3, "image_id": 8, "category_id": 1, "iscrowd": 1, "segmentation": crowd},
            {"id": 4, "image_id": 8, "category_id": 17, "iscrowd": 0, "segmentation": [SQUARE]},
        ],
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for i in (7, 8, 9):
        write_frame(tmp_path / f"coco/train2017/{i:012d}.jpg")
    return tmp_path


def write(root: Path, annotations: dict[str, Any], file: str = "annotations/instances_train2017.json") -> None:
    write_json(root / "coco" / file, annotations)


def test_records(root: Path) -> None:
    write(root, data())
    records = DatasetCatalog.get("coco_2017_train")
    assert [(r.video_id, r.length, len(r.instances)) for r in records] == [(7, 1, 2), (8, 1, 2), (9, 1, 0)]
    assert [i.category_id for i in records[0].instances] == [0, list(COCO_CLASSES).index(38)]
    assert [i.is_crowd for i in records[1].instances] == [True, False]
    assert records[0].masks is not None and records[0].masks.read(0)[1] == [SQUARE]
    metadata = MetadataCatalog.get("coco_2017_train")
    assert (metadata.task, metadata.label_set, metadata.evaluator_type) == ("image", "coco", "coco")
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79 and len(metadata.thing_classes) == 80


def test_pseudo_video_of_an_image(root: Path) -> None:
    write(root, data())
    items = [item for batch in islice(build_train_loader(small_cfg("coco_2017_train")), 8) for item in batch]
    assert {item["video_id"] for item in items} == {7, 8}  # image 9 shows nothing
    for item in items:
        assert item["image"].shape == (4, 3, 48, 72) and item["frame_indices"] == [0] * 4
        assert len(item["masks"]) == (2 if item["video_id"] == 7 else 1)  # the crowd is left out
        if item["video_id"] == 8:
            assert item["classes"].tolist() == [list(COCO_CLASSES).index(17)]
        first, *others = item["masks"][0].float().unbind()
        assert any((first != other).any() for other in others)  # it turns
        assert all(abs(other.sum() / first.sum() - 1) < 0.15 for other in others)


def test_pasted_objects_occlude_the_masks_behind_them(root: Path) -> None:
    write(root, data())
    cfg = small_cfg("coco_2017_train")
    cfg.INPUT.PSEUDO.COPY_PASTE = 1.0
    cfg.INPUT.PSEUDO.AUGMENTATIONS = ["crop_scale"]
    pasted = 0
    for batch in islice(build_train_loader(cfg), 20):
        for item in batch:
            own = 2 if item["video_id"] == 7 else 1
            pasted += len(item["masks"]) > own
            assert len(item["masks"]) == len(item["classes"]) and item["masks"].any(dim=3).any(dim=2).any(dim=1).all()
    assert pasted > 5


def test_objects_without_their_classes(root: Path) -> None:
    write(root, data())
    records, original = DatasetCatalog.get("coco2object_train"), DatasetCatalog.get("coco_2017_train")
    metadata = MetadataCatalog.get("coco2object_train")
    assert (metadata.label_set, metadata.thing_classes, metadata.task) == ("object", ["object"], "image")
    assert [len(record.instances) for record in records] == [len(record.instances) for record in original]
    assert {instance.category_id for record in records for instance in record.instances} == {0}


@pytest.mark.parametrize(
    ("name", "mapping", "classes"),
    [
        ("coco2ytvis2019_train", COCO_TO_YTVIS_2019, YTVIS_2019_CLASSES),
        ("coco2ytvis2021_train", COCO_TO_YTVIS_2021, YTVIS_2021_CLASSES),
        ("coco2ovis_train", COCO_TO_OVIS, OVIS_CLASSES),
    ],
)
def test_categories_of_the_video_benchmarks(
    root: Path, name: str, mapping: dict[int, int], classes: dict[int, str]
) -> None:
    file = f"{name}.json"
    write(root, data(), file)  # as other projects write it; COCO's own file comes first where both are there
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    names = [[metadata.thing_classes[i.category_id].lower() for i in record.instances] for record in records]
    assert names == [["person"], ["person", "cat"], []]
    assert metadata.thing_classes == list(classes.values())
    assert set(mapping) <= set(COCO_CLASSES) and set(mapping.values()) <= set(classes)
    same = {
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
        "person",
        "boat",
        "train",
    }
    for own, target in mapping.items():
        if COCO_CLASSES[own] in same and COCO_CLASSES[own] in [c.lower() for c in classes.values()]:
            assert classes[target].lower() == COCO_CLASSES[own]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(images=None), r"field 'images': nothing found"),
        (lambda d: d.update(annotations=None), r"field 'annotations': nothing found"),
        (lambda d: d["images"][1].update(id=7), r"images\[1\]\.id: 7 found, which another image has"),
        (lambda d: d["images"][1].update(height=0), r"images\[1\]\.height \(image 8\): 0 found"),
        (lambda d: d["images"][1].pop("file_name"), r"images\[1\]\.file_name \(image 8\): None found"),
        (lambda d: d["annotations"][1].update(id=1), r"annotations\[1\] \(image 7\)\.id: 1 found"),
        (lambda d: d["annotations"][1].update(iscrowd="0"), r"annotations\[1\] \(image 7\)\.iscrowd: '0' found"),
        (lambda d: d["annotations"][1].update(category_id=-1), r"annotations\[1\] \(image 7\)\.category_id: -1 found"),
        (lambda d: d["annotations"][1].update(category_id=12), r"annotations\[1\] \(image 7\)\.category_id: 12 found"),
        (lambda d: d["annotations"][1].update(category_id=[1]), r"annotations\[1\] \(image 7\)\.category_id: \[1\] fo"),
        (lambda d: d["annotations"][1].update(image_id={}), r"annotations\[1\]\.image_id: {} found, a whole number"),
        (lambda d: d["annotations"][2]["segmentation"].update(size=[9, 9]), r"annotations\[2\] .*size \[9, 9\]"),
        (lambda d: d["annotations"][2]["segmentation"].update(counts=[1, 2]), r"run lengths add up to 3"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, None, 4, 5, 6]]), r"a polygon of finite numbers"),
        (lambda d: d["categories"].pop(0), r"field 'categories': id 1 is None, 'person' expected"),
    ],
)
def test_broken_entry_names_file_and_field(root: Path, change: Any, message: str) -> None:
    annotations = data()
    change(annotations)
    write(root, annotations)
    with pytest.raises(UserError, match=r"instances_train2017\.json: .*" + message):
        DatasetCatalog.get("coco_2017_train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(image_id=99), "1 annotations of images that the file does not list"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "1 polygons without three points"),
        (lambda d: d["annotations"][0].pop("segmentation"), "1 annotations without a mask"),
        (lambda d: d["annotations"][0].update(area=float("nan")), "1 areas that are not one number for each frame"),
        (lambda d: d["annotations"][0].update(bbox=[1, float("nan"), 2, 3]), "1 boxes that hold no finite numbers"),
    ],
)
def test_skipped_entries_are_counted(root: Path, caplog: pytest.LogCaptureFixture, change: Any, message: str) -> None:
    annotations = data()
    change(annotations)
    write(root, annotations)
    with caplog.at_level(logging.WARNING):
        assert len(DatasetCatalog.get("coco_2017_train")) == 3
    assert f"left out {message}" in caplog.text


def test_an_object_that_is_labelled_twice_fails_the_check(root: Path) -> None:
    annotations = data()
    annotations["annotations"].append({**annotations["annotations"][0], "id": 99})
    write(root, annotations)
    [problem] = check_dataset("coco_2017_train").problems
    assert problem.endswith("annotations[4] (image 7) has the same masks as annotations[0]")


def test_the_error_lists_all_candidate_paths(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"coco2ovis_train: no annotation file found; looked for .*instances_train2017\.json, "
    ):
        DatasetCatalog.get("coco2ovis_train")


def test_data_sets_of_one_file_read_it_once_and_share_its_polygons(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages 2 and 3 train on five of COCO's, whose polygons take gigabytes."""
    write(root, data())
    read: list[Path] = []

    def count(path: Path) -> Any:
        read.append(path)
        return read_json(path)

    monkeypatch.setattr(reading, "read_json", count)
    names = ("coco_2017_train", "coco2object_train", "coco2ovis_train")
    with reading.shared_tables():
        masks = [next(record.masks for record in get_records(name) if record.video_id == 7) for name in names]
    polygons = [each.by_instance[1][0][0] for each in masks if isinstance(each, ListedMasks)]  # type: ignore[index]
    assert len(polygons) == 3 and polygons[0] is polygons[1] is polygons[2]
    build_train_loader(small_cfg(*names))
    assert len(read) == 2, "the loader reads it once, too, and nothing was kept for it"


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images(shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: str) -> None:
    (tmp_path / "coco").symlink_to(shared_data / "coco_mini")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = DatasetCatalog.get(f"coco_2017_{split}")
    expected = {"train": (293, 2472, 28), "val": (188, 1692, 20)}[split]
    assert (len(records), sum(len(r.instances) for r in records)) == expected[:2]
    assert sum(i.is_crowd for r in records for i in r.instances) == expected[2]
    original = COCO(str(shared_data / f"coco_mini/annotations/instances_{split}2017.json"))
    for record in records[::10]:
        assert record.frames[0].shape == (record.height, record.width, 3)
        assert record.masks is not None
        plan = ClipPlan.identity(1, (record.height, record.width))
        for instance_id, stored in record.masks.read(0).items():
            mask = np.zeros((record.height, record.width), bool)
            render_mask(stored, mask.shape, plan, 0, mask)
            assert np.array_equal(mask, original.annToMask(original.anns[instance_id]))
    assert mask_util.area(original.annToRLE(next(iter(original.anns.values())))) > 0


def own(root: Path, *style: object, supercategories: bool = True) -> list[VideoRecord]:
    """The records of a file of one's own: a tram in image 7, two gulls in image 8, and nothing in image 9."""
    names = {4: ("tram", "vehicle"), 9: ("gull", "animal")}
    table = {
        "images": data()["images"],
        "categories": [
            {"id": i, "name": name, **({"supercategory": above} if supercategories else {})}
            for i, (name, above) in names.items()
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "segmentation": [SQUARE]}
            for i, image, category in ((1, 7, 4), (2, 8, 9), (3, 8, 9))
        ],
    }
    write(root, table, "own.json")
    cfg = small_cfg("own_train")
    cfg.DATASETS.COCO_STYLE = [["own_train", "coco/own.json", "coco/train2017", *style]]
    register_from_config(cfg)
    return DatasetCatalog.get("own_train")


@pytest.mark.parametrize(
    ("style", "label_set", "classes", "categories"),
    [
        ([], "own", ["tram", "gull"], [0, 1, 1]),
        (["birds"], "birds", ["tram", "gull"], [0, 1, 1]),
        (["object"], "object", ["object"], [0, 0, 0]),
        (["coco_super"], "coco_super", list(COCO_SUPER_CLASSES.values()), [1, 3, 3]),
    ],
)
def test_a_users_file_has_the_label_set_of_its_config_line(
    root: Path, style: list[object], label_set: str, classes: list[str], categories: list[int]
) -> None:
    records = own(root, *style)
    metadata = MetadataCatalog.get("own_train")
    assert (metadata.label_set, metadata.thing_classes) == (label_set, classes)
    assert (metadata.task, metadata.exhaustive) == ("image", True)
    assert [i.category_id for record in records for i in record.instances] == categories
    assert records[0].masks is not None and list(records[0].masks.read(0)) == [1]


def test_the_supercategories_are_those_of_coco() -> None:
    assert len(COCO_SUPER_CLASSES) == 12 and list(COCO_SUPER_CLASSES.values())[:4] == [
        "person", "vehicle", "outdoor", "animal",
    ]  # fmt: skip


def test_a_category_without_one_of_the_twelve_supercategories_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"own.json: categories\[0\].supercategory: None found"):
        own(root, "coco_super", supercategories=False)


@pytest.mark.parametrize("exhaustive", [True, False])
def test_without_exhaustive_labels_clips_are_prompted(root: Path, exhaustive: bool) -> None:
    own(root, "object", exhaustive)
    cfg = small_cfg("own_train", DATASETS__COCO_STYLE=[["own_train", "coco/own.json", "coco/train2017", "object",
                                                        exhaustive]])  # fmt: skip
    for item in next(iter(build_train_loader(cfg))):
        assert item["exhaustive"] == exhaustive and item["prompted"] != exhaustive


@pytest.mark.parametrize("entry", [["a", "b"], ["a", "b", "c", "object", "yes"], ["a", "b", "c", 1], "abc"])
def test_a_malformed_config_line_is_refused(entry: object) -> None:
    cfg = small_cfg()
    cfg.DATASETS.COCO_STYLE = [entry]
    with pytest.raises(UserError, match=r"DATASETS.COCO_STYLE: .* found; a list of name, annotation file"):
        register_from_config(cfg)
