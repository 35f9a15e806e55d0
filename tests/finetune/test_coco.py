# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ausm_d2.errors import UserError
from ausm_d2.finetune.coco import read_coco
from ausm_d2.finetune.labels import split
from ausm_d2.masks.rle import encode
from tests.data.disk import square
from tests.finetune.own import annotation, box, coco, write_coco, write_picture


def read(folder: Path, table: dict[str, Any], **options: Any) -> Any:
    return read_coco(*write_coco(folder, table), **options)


def test_a_part_is_held_out_and_every_class_stays_in_training(tmp_path: Path) -> None:
    labels = read(tmp_path, coco(5))
    assert labels.classes == ["cup", "spoon"], "in the order of their ids, which are 7 and 12"
    assert (labels.train.pictures, labels.held.pictures) == (4, 1)
    assert labels.train.objects == {"cup": 4, "spoon": 2} and labels.held.objects == {"cup": 1, "spoon": 1}
    files = [{image["file_name"] for image in part.table["images"]} for part in (labels.train, labels.held)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 5
    assert labels.notes == [] and labels.train.style == labels.held.style == "COCO_STYLE"


def test_the_split_is_the_same_for_a_seed_and_never_takes_the_last_of_a_class() -> None:
    classes = [{1}, {1, 2}, {1}, {3}, {1, 3}]
    assert split(classes, 0.4, 5) == split(classes, 0.4, 5)
    for seed in range(20):
        held = split(classes, 0.9, seed)
        left = [classes[i] for i in range(5) if i not in held]
        assert set().union(*left) == {1, 2, 3} and held and 1 not in held


def test_one_image_alone_is_trained_on_and_nothing_is_scored(tmp_path: Path) -> None:
    labels = read(tmp_path, coco(1))
    assert labels.train.pictures == 1 and labels.held is None
    assert "nothing is scored; --val gives others" in labels.notes[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_pictures_of_any_mode_are_read(tmp_path: Path, mode: str) -> None:
    files = write_coco(tmp_path, coco(3))
    for i in range(3):
        write_picture(tmp_path / "images" / f"{i}.png", i, mode)
    assert read_coco(*files).train.pictures == 2


def test_what_annotation_tools_export_is_read(tmp_path: Path) -> None:
    """Sub folders, RLE crowds, ids as text and from 0 on, categories without an object, images without a label."""
    table = coco(3)
    for image in table["images"]:
        image["file_name"] = f"batch 1/ü/{image['file_name']}"
    table["images"].append({"id": 9, "file_name": "9.png", "height": 24, "width": 36})
    table["categories"] = [{"id": 0, "name": "things"}, *table["categories"]]
    table["annotations"][0].update(image_id="0", category_id=7.0)
    crowd = np.zeros((24, 36), bool)
    crowd[:, 30:] = True
    counts = {"size": [24, 36], "counts": [30 * 24, 6 * 24]}
    table["annotations"].append(annotation(90, 1, 7, iscrowd=1, segmentation=counts))
    labels = read(tmp_path, table)
    assert labels.classes == ["cup", "spoon"] and labels.train.objects["cup"] + labels.held.objects["cup"] == 3
    assert labels.notes[:2] == [
        "no object of things: left out",
        "1 images without an object of these classes are left out",
    ]
    assert [each["id"] for each in labels.train.table["categories"]] == [7, 12]


def test_some_classes_of_a_file(tmp_path: Path) -> None:
    labels = read(tmp_path, coco(5), classes=["spoon"])
    assert labels.classes == ["spoon"] and labels.train.pictures + labels.held.pictures == 3
    assert labels.notes[0] == "5 objects of other classes are left out"
    with pytest.raises(UserError, match=r"--classes: \['fork'\] found; .*labels.json has cup, spoon"):
        read(tmp_path, coco(5), classes=["fork"])


def test_other_labels_to_score_on_match_by_name(tmp_path: Path) -> None:
    table = coco(3)
    table["categories"] = [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}]
    for entry in table["annotations"]:
        entry["category_id"] = {7: 1, 12: 2}[entry["category_id"]]
    for image in table["images"]:
        image["file_name"] = f"other{image['file_name']}"
    path, images = write_coco(tmp_path / "val", table, pictures=False)
    for i in range(3):
        write_picture(images / f"other{i}.png", 100 + i)
    labels = read(tmp_path, coco(5), val=path, val_images=images)
    assert labels.train.pictures == 5 and labels.held.pictures == 3 and labels.held.objects == {"cup": 3, "spoon": 0}
    assert {each["category_id"] for each in labels.held.table["annotations"]} == {7}
    assert labels.notes == [
        f"{path}: 2 objects of other classes are left out",
        "held out is no object of spoon, so that is not scored",
    ]
    write_picture(images / "other2.png", 1)
    with pytest.raises(UserError, match=r"'other2.png' is the same picture as '1.png' of .*, which is trained on"):
        read(tmp_path, coco(5), val=path, val_images=images)


def test_boxes_are_masks_only_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = coco(3)
    for entry in table["annotations"]:
        entry["segmentation"] = []
    del table["annotations"][1]["segmentation"]
    with pytest.raises(UserError, match=r"labels.json: 5 of 5 annotations, the first of them annotations\[0\], have"):
        read(tmp_path, table)
    table["annotations"][0]["bbox"] = [-3, 20, 8, 8]  # over the border
    labels = read(tmp_path, table, boxes_as_masks=True)
    drawn = {e["id"]: e["segmentation"] for part in (labels.train, labels.held) for e in part.table["annotations"]}
    assert drawn[11] == box(4, 5) and drawn[10] == [[0, 20, 5, 20, 5, 24, 0, 24]]
    table["annotations"][0]["bbox"] = [4, 4, 0, 8]
    with pytest.raises(UserError, match=r"1 of 5 annotations.*have neither a mask \(segmentation\) nor a box"):
        read(tmp_path, table, boxes_as_masks=True)
    table["annotations"][0]["bbox"] = [40, 4, 8, 8]
    with pytest.raises(UserError, match="2 problems"):
        read(tmp_path, table, boxes_as_masks=True)
    assert "annotations[0].bbox: [40, 4, 8, 8], outside of its image of 36x24" in caplog.text


def spoiled(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    table = coco(3)
    change(table)
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "another size": (lambda t: t["images"][1].update(width=40), r"is 24 x 36 .*24 x 40 expected"),
        "two classes of one name": (
            lambda t: t["categories"].append({"id": 3, "name": "cup"}),
            r"2 categories have the name 'cup' \(ids \[7, 3\]\)",
        ),
        "an object labelled twice": (
            lambda t: t["annotations"].append({**t["annotations"][0], "id": 99}),
            r"annotations\[5\] has the same mask in the same image as annotations\[0\]",
        ),
        "a mask outside": (lambda t: t["annotations"][0].update(segmentation=box(50, 5)), "polygon outside"),
        "run lengths that do not fill": (
            lambda t: t["annotations"][0].update(segmentation={"size": [24, 36], "counts": [5]}),
            "annotations.0.*segmentation",
        ),
        "an unknown image": (lambda t: t["annotations"][0].update(image_id=77), "1 annotations of images"),
        "an unknown class": (lambda t: t["annotations"][0].update(category_id=77), "category_id: 77 found"),
        "no sizes": (lambda t: t["images"][0].pop("height"), r"images\[0\].height .* None found, pixels expected"),
        "no annotations": (lambda t: t.update(annotations=[]), "no annotations, so there is nothing to learn"),
        "no categories": (lambda t: t.pop("categories"), "field 'categories': nothing found"),
        "crowds only": (
            lambda t: [each.update(iscrowd=1) for each in t["annotations"]],
            r"no object of spoon, cup to learn from \(crowds do not count\)",
        ),
    }.values(),
)
def test_what_is_wrong_with_labels_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[..., Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, spoiled(change))
    texts = [str(error.value), *caplog.messages]
    assert "\n" not in texts[0] and str(tmp_path) in texts[0]
    assert any(re.search(message, text) for text in texts), texts


def test_missing_and_repeated_pictures_are_all_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_coco(tmp_path, coco(4))
    (tmp_path / "images" / "3.png").unlink()
    write_picture(tmp_path / "images" / "2.png", 1)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"2 problems in the labels \(above\)"):
        read_coco(*files)
    first, second = caplog.messages
    assert first == f"{files[0]}: images: '2.png' and '1.png' are the same picture"
    assert "3.png" in second and "/tmp" not in second.replace(str(tmp_path), "")
    with pytest.raises(UserError, match="--images: no folder"):
        read_coco(files[0], tmp_path / "nowhere")


def test_a_mask_of_run_lengths_is_learned_from(tmp_path: Path) -> None:
    table = coco(3)
    table["annotations"][0]["segmentation"] = encode(square(1))
    assert read(tmp_path, table).train.pictures == 2
