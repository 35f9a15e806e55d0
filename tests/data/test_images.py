# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Folders of images with masks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ausm_d2.data.build import build_train_loader
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from tests.data.disk import SIZE, square, write_frame
from tests.data.stubs import small_cfg


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image 2 with two objects, image 10 with one in black and white, image 11 without a mask."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("2", "10", "11"):
        write_frame(tmp_path / f"things/images/{name}.jpg")
    (tmp_path / "things/masks").mkdir()
    labels = square(0).astype(np.uint8) * 3
    labels[20:, 30:] = 7
    Image.fromarray(labels).save(tmp_path / "things/masks/2.png")
    Image.fromarray(square(1)).save(tmp_path / "things/masks/10.png")
    return tmp_path


def line(*rest: object) -> list[object]:
    return ["things_train", "things/images", "things/masks", *rest]


def records(*rest: object) -> list[VideoRecord]:
    cfg = small_cfg()
    cfg.DATASETS.MASKED_IMAGES = [line(*rest)]
    register_from_config(cfg)
    return DatasetCatalog.get("things_train")


def test_every_image_with_a_mask_is_a_video_of_one_frame(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = records()
    assert [(r.name, r.length, (r.height, r.width)) for r in found] == [("2", 1, SIZE), ("10", 1, SIZE)]
    assert "left out 1 images without a mask" in caplog.text
    assert found[0].masks is not None and list(found[0].masks.read(0)) == [3, 7]
    assert found[1].masks is not None and np.array_equal(found[1].masks.read(0)[1], square(1))


@pytest.mark.parametrize(
    ("rest", "label_set", "classes", "exhaustive"),
    [([], "object", ["object"], False), (["leaf"], "leaf", ["leaf"], False), (["leaf", True], "leaf", ["leaf"], True)],
)
def test_a_config_line_sets_label_set_and_exhaustiveness(
    root: Path, rest: list[object], label_set: str, classes: list[str], exhaustive: bool
) -> None:
    records(*rest)
    metadata = MetadataCatalog.get("things_train")
    assert (metadata.label_set, metadata.thing_classes, metadata.exhaustive) == (label_set, classes, exhaustive)
    cfg = small_cfg("things_train", DATASETS__MASKED_IMAGES=[line(*rest)])
    item = next(iter(build_train_loader(cfg)))[0]
    assert item["prompted"] != exhaustive and item["masks"].shape[1] == 4 and len(item["masks"]) in (1, 2)


def test_a_mask_without_its_image_is_named(root: Path) -> None:
    (root / "things/images/2.jpg").unlink()
    with pytest.raises(UserError, match=r"masks/2.png: no image of this name in .*images"):
        records()


def test_a_folder_without_masks_is_named(root: Path) -> None:
    for file in (root / "things/masks").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"things/masks: no mask"):
        records()


def test_a_mask_of_another_size_is_named(root: Path) -> None:
    Image.fromarray(np.ones((5, 5), bool)).save(root / "things/masks/2.png")
    record = records()[0]
    assert record.masks is not None
    with pytest.raises(UserError, match=r"2.png: is 5 x 5 .* its frame is 24 x 36"):
        record.masks.read(0)
