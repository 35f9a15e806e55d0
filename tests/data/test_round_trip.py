# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The embedded data, written to disk and read back by the readers of the benchmarks, bit for bit."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.data.catalog import register_ytvis_style
from ausm_d2.data.check import check_dataset
from ausm_d2.data.video import MaskSource
from ausm_d2.masks.rle import StoredMask, decode

VIDEOS = 2


def prepare(layout: str, out: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "datasets" / "prepare_synthvis.py"
    arguments = ["--split", "val", "--videos", f"0:{VIDEOS}", "--layout", layout, "--out", str(out)]
    runpy.run_path(str(script))["main"](arguments)


def bitmaps(masks: MaskSource | None, index: int) -> list[bytes]:
    """The masks of a frame, whatever their ids."""
    assert masks is not None
    found: Mapping[int, StoredMask] = masks.read(index)
    return sorted((mask if isinstance(mask, np.ndarray) else decode(mask)).tobytes() for mask in found.values())  # type: ignore[arg-type]


def test_through_the_youtube_vis_reader(tmp_path: Path) -> None:
    prepare("ytvis", tmp_path)
    register_ytvis_style("synth_disk_val", str(tmp_path / "valid.json"), str(tmp_path / "valid/JPEGImages"))
    records, originals = DatasetCatalog.get("synth_disk_val"), DatasetCatalog.get("synthvis_val")[:VIDEOS]
    assert MetadataCatalog.get("synth_disk_val").thing_classes == MetadataCatalog.get("synthvis_val").thing_classes
    assert len(records) == VIDEOS
    for record, original in zip(records, originals, strict=True):
        assert (record.height, record.width, record.length) == (original.height, original.width, original.length)
        assert [i.category_id for i in record.instances] == [i.category_id for i in original.instances]
        for index in range(original.length):
            assert np.array_equal(record.frames[index], original.frames[index])
            assert bitmaps(record.masks, index) == bitmaps(original.masks, index)
    assert not check_dataset("synth_disk_val").problems


def test_through_the_davis_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("davis", tmp_path / "DAVIS")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records, originals = DatasetCatalog.get("davis_2017_val"), DatasetCatalog.get("synthvis_val_vos")[:VIDEOS]
    assert [record.name for record in records] == [original.name for original in originals]
    for record, original in zip(records, originals, strict=True):
        assert (record.height, record.width, record.length) == (original.height, original.width, original.length)
        assert record.prompt_frames is not None and original.prompt_frames is not None
        assert dict(record.prompt_frames) == dict(original.prompt_frames)
        for index in range(original.length):
            assert np.array_equal(record.frames[index], original.frames[index])
            assert record.masks is not None and original.masks is not None
            assert record.masks.read(index).keys() == original.masks.read(index).keys()
            assert bitmaps(record.masks, index) == bitmaps(original.masks, index)
    assert not check_dataset("davis_2017_val").problems
