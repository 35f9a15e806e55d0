# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The YouTube-VIS reader: valid files, and the message for each kind of invalid file."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.data.build import build_test_loader, build_train_loader, get_records, has_instances
from ausm_d2.data.catalog import register_from_config, register_ytvis_style
from ausm_d2.data.catalog.ytvis import OVIS_CLASSES, YTVIS_2019_CLASSES, YTVIS_2021_CLASSES
from ausm_d2.data.check import check_dataset
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation.tracks import true_tracks
from ausm_d2.evaluation.ytvis import TrackEval
from ausm_d2.masks.rle import decode
from tests.data.disk import SIZE, square, write_frame, write_json, write_ytvis, ytvis_data
from tests.data.stubs import small_cfg


def read(folder: Path, data: dict[str, Any]) -> list[VideoRecord]:
    register_ytvis_style("own_train", *write_ytvis(folder, data))
    return DatasetCatalog.get("own_train")


def test_records(tmp_path: Path) -> None:
    records = read(tmp_path, ytvis_data())
    assert [(r.video_id, r.name, r.height, r.width, r.length) for r in records] == [
        (10, "clip0", *SIZE, 3),
        (11, "clip1", *SIZE, 3),
    ]
    assert [(i.instance_id, i.category_id) for i in records[0].instances] == [(1, 1), (2, 0)]
    assert records[0].frames.names == ["00000", "00001", "00002"]
    assert records[0].frames[2].shape == (*SIZE, 3)
    assert records[0].masks is not None and records[0].labelled is None
    assert list(records[0].masks.read(1)) == [1]
    assert np.array_equal(decode(records[0].masks.read(2)[2]), square(2, offset=10))
    assert records[0].extra["areas"] == {1: [36, 36, 36]}
    metadata = MetadataCatalog.get("own_train")
    assert metadata.thing_classes == ["cat", "dog"] and metadata.label_set == "own"
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
    assert (metadata.task, metadata.evaluator_type, metadata.exhaustive) == ("vis", "ytvis", True)


def test_uncompressed_run_lengths_polygons_and_text_ids(tmp_path: Path) -> None:
    data = ytvis_data()
    flat = square(0).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    data["annotations"][2]["segmentations"] = [
        {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()},
        [[2.0, 4.0, 8.0, 4.0, 8.0, 10.0, 2.0, 10.0]],
        None,
    ]
    data["videos"][1]["id"] = data["annotations"][2]["video_id"] = "clip one"
    record = read(tmp_path, data)[1]
    assert record.video_id == "clip one" and record.masks is not None
    assert np.array_equal(decode(record.masks.read(0)[3]), square(0))
    assert record.masks.read(1)[3] == [[2.0, 4.0, 8.0, 4.0, 8.0, 10.0, 2.0, 10.0]]  # stays a polygon
    assert record.masks.read(2) == {}


@pytest.mark.parametrize("annotations", [None, "absent"])
def test_no_public_labels(tmp_path: Path, annotations: Any) -> None:
    data = ytvis_data()
    data["annotations"] = annotations
    if annotations == "absent":
        del data["annotations"]
    records = read(tmp_path, data)
    assert [record.masks for record in records] == [None, None] and not records[0].instances
    assert len(build_test_loader(small_cfg(), "own_train")) == 2
    with pytest.raises(UserError, match="no video with instances"):
        build_train_loader(small_cfg("own_train"))


def test_byte_order_mark(tmp_path: Path) -> None:
    register_ytvis_style("own_train", *write_ytvis(tmp_path, ytvis_data()))
    write_json(tmp_path / "labels.json", ytvis_data(), encoding="utf-8-sig")
    assert len(DatasetCatalog.get("own_train")) == 2


def test_one_frame_video_makes_a_clip(tmp_path: Path) -> None:
    read(tmp_path, ytvis_data(frames=1))
    item = next(iter(build_train_loader(small_cfg("own_train"))))[0]
    assert item["frame_indices"] == [0] * 4 and item["masks"].any(dim=3).any(dim=2).all()


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the entry at ``path``, e.g. "videos.0.height"; a value of KeyError takes it out."""

    def apply(data: Any) -> None:
        *keys, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
        for key in keys:
            data = data[key]
        if value is KeyError:
            del data[last]
        else:
            data[last] = value

    return apply


RLE_OF_ANOTHER_SIZE = {"size": [5, 5], "counts": [25]}
BROKEN: list[tuple[str, Any, str]] = [
    ("videos", None, r"field 'videos': nothing found, a list"),
    ("videos", {"0": {}}, r"field 'videos': dict found"),
    ("categories", KeyError, r"field 'categories': nothing found"),
    ("categories.1.id", 1, r"categories\[1\]\.id: 1 found"),
    ("categories.1.id", -3, r"categories\[1\]\.id: -3 found"),
    ("videos.0.id", KeyError, r"videos\[0\]\.id: None found"),
    ("videos.1.id", 10, r"videos\[1\]\.id: 10 found a second time"),
    ("videos.0.file_names", KeyError, r"videos\[0\]\.file_names \(video 10\)"),
    ("videos.0.file_names", "clip0/00000.jpg", r"videos\[0\]\.file_names \(video 10\)"),
    ("videos.0.length", 7, r"videos\[0\]\.length \(video 10\): 7 found, but 3 file names"),
    ("videos.0.height", 0, r"videos\[0\]\.height \(video 10\): 0 found"),
    ("videos.0.width", "36", r"videos\[0\]\.width \(video 10\): '36' found"),
    ("annotations", {}, r"field 'annotations': dict found"),
    ("annotations.1.id", 1, r"annotations\[1\] \(video 10\)\.id: 1 found"),
    ("annotations.1.id", None, r"annotations\[1\] \(video 10\)\.id: None found"),
    ("annotations.0.category_id", -1, r"\[0\] \(video 10\)\.category_id: -1 found, one of \[1, 2\]"),
    ("annotations.0.category_id", [1], r"\[0\] \(video 10\)\.category_id: \[1\] found, one of \[1, 2\]"),
    ("annotations.0.video_id", [10], r"annotations\[0\]\.video_id: \[10\] found, a whole number or text expected"),
    ("annotations.0.iscrowd", "0", r"annotations\[0\] \(video 10\)\.iscrowd: '0' found, 0 or 1 expected"),
    ("annotations.0.iscrowd", 2, r"annotations\[0\] \(video 10\)\.iscrowd: 2 found, 0 or 1 expected"),
    ("annotations.0.category_id", 41, r"annotations\[0\] \(video 10\)\.category_id: 41 found"),
    ("annotations.0.segmentations", KeyError, r"annotations\[0\] \(video 10\)\.segmentations: no list found"),
    ("annotations.0.segmentations", [None], r"segmentations: 1 entries found, one for each of 3 frames"),
    ("annotations.0.segmentations.1", RLE_OF_ANOTHER_SIZE, r"segmentations\[1\]: size \[5, 5\], expected \[24, 36\]"),
    ("annotations.0.segmentations.1", {"size": list(SIZE), "counts": [9]}, r"\[1\]: run lengths add up to 9"),
    ("annotations.0.segmentations.1.counts", "04", r"segmentations\[1\]\.counts: run lengths that do not fill"),
    ("annotations.0.segmentations.1.counts", 7, r"segmentations\[1\]: counts is int"),
    ("annotations.0.segmentations.1", "mask", r"segmentations\[1\]: expected null, run lengths"),
    ("annotations.0.segmentations.1", [[1, 2, float("nan"), 4, 5, 6]], r"\[1\]: a polygon of finite numbers"),
    ("annotations.0.segmentations.1", [["a", "b"]], r"\[1\]: a polygon of finite numbers"),
    ("annotations.0.segmentations.1", [[1, 2, 3, 4, 5, 2e6]], r"\[1\]: a polygon 1000000 pixels away or more"),
    ("videos.0.width", 10**7, r"videos\[0\] \(video 10\): 24 x 10000000 pixels, 100 million at most expected"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), BROKEN)
def test_broken_entry_names_file_and_field(tmp_path: Path, path: str, value: Any, message: str) -> None:
    data = ytvis_data()
    files = copy.deepcopy(data)
    change(path, value)(data)
    register_ytvis_style("own_train", *write_ytvis(tmp_path, files))
    write_json(tmp_path / "labels.json", data)
    with pytest.raises(UserError, match=r"labels\.json: .*" + message):
        DatasetCatalog.get("own_train")


SKIPPED: list[tuple[str, Any, str, int]] = [
    ("videos.1.file_names", [], "1 videos of 0 frames", 1),
    ("annotations.0.video_id", 99, "1 annotations of videos that the file does not list", 2),
    ("annotations.0.segmentations.0", [[1, 2, 3, 4]], "1 polygons without three points", 2),
    *(
        ("annotations.0.areas", areas, "1 areas that are not one number for each frame", 2)
        for areas in ([20, float("nan"), 20], ["20", 20, 20], [20, True, 20], [20, -1, 20], [20, 20], 20)
    ),
    ("annotations.0.bboxes.1", [1, 2, float("nan"), 4], "1 boxes that hold no finite numbers", 2),
    ("annotations.0.bboxes", 3, "1 boxes that hold no finite numbers", 2),
]


@pytest.mark.parametrize(("path", "value", "message", "videos"), SKIPPED)
def test_skipped_entries_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, value: Any, message: str, videos: int
) -> None:
    data = ytvis_data()
    change(path, value)(data)
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, data)) == videos
    assert f"labels.json: left out {message}" in caplog.text


def test_a_file_that_is_not_an_annotation_file_is_refused(tmp_path: Path) -> None:
    for text, message in (("", "not a JSON file"), ("[1, 2]", "a list found"), ('{"videos": [', "not a JSON file")):
        (tmp_path / "labels.json").write_text(text)
        (tmp_path / "images").mkdir(exist_ok=True)
        register_ytvis_style("own_train", str(tmp_path / "labels.json"), str(tmp_path / "images"))
        with pytest.raises(UserError, match=rf"labels\.json: {message}"):
            DatasetCatalog.get("own_train")


def test_missing_and_wrong_frames_are_reported_not_raised_deep_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = read(tmp_path, ytvis_data())[0]
    (tmp_path / "images/clip0/00001.jpg").unlink()
    with pytest.raises(UserError, match=r"clip0/00001\.jpg: the picture cannot be read"):
        record.frames[1]
    write_frame(tmp_path / "images/clip0/00001.jpg", size=(30, 30))
    cfg = small_cfg("own_train", INPUT__SAMPLING_FRAME_NUM=3)
    batches = iter(build_train_loader(cfg))
    assert {item["video_id"] for _ in range(6) for item in next(batches)} == {11}
    assert "video clip0, frame 00001: is 30 x 30 (height x width), 24 x 36 expected" in caplog.text


# The benchmarks


@pytest.mark.parametrize(
    ("name", "json_file", "image_root", "classes"),
    [
        ("ytvis_2019_train", "ytvis_2019/train.json", "ytvis_2019/train/JPEGImages", YTVIS_2019_CLASSES),
        ("ytvis_2019_val", "ytvis_2019/valid.json", "ytvis_2019/valid/JPEGImages", YTVIS_2019_CLASSES),
        ("ytvis_2019_train", "ytvis_2019/annotations/instances_train_sub.json", "ytvis_2019/train/JPEGImages",
         YTVIS_2019_CLASSES),
        ("ytvis_2021_train", "ytvis_2021/train/instances.json", "ytvis_2021/train/JPEGImages", YTVIS_2021_CLASSES),
        ("ytvis_2021_test", "ytvis_2021/test.json", "ytvis_2021/test/JPEGImages", YTVIS_2021_CLASSES),
        ("ovis_train", "ovis/annotations/train.json", "ovis/train", OVIS_CLASSES),
        ("ovis_val", "ovis/annotations_valid.json", "ovis/valid", OVIS_CLASSES),
    ],
)  # fmt: skip
def test_benchmark_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, json_file: str, image_root: str, classes: dict[int, str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=rf"{name}: no annotation file found; looked for .*{tmp_path.name}/{name[:4]}"):
        DatasetCatalog.get(name)
    data = ytvis_data(categories=classes)
    write_json(tmp_path / json_file, data)
    if not (tmp_path / image_root).parent.exists():
        with pytest.raises(UserError, match=f"{name}: no image folder found; looked for"):
            DatasetCatalog.get(name)
    for video in data["videos"]:
        for file in video["file_names"]:
            write_frame(tmp_path / image_root / file)
    records = DatasetCatalog.get(name)
    assert records[1].frames[0].shape == (*SIZE, 3)
    metadata = MetadataCatalog.get(name)
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == len(classes)
    assert metadata.thing_dataset_id_to_contiguous_id[1] == 0
    assert metadata.label_set == name.rpartition("_")[0]


def test_a_file_of_another_benchmark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_json(tmp_path / "ytvis_2019/train.json", ytvis_data(categories=YTVIS_2021_CLASSES))
    (tmp_path / "ytvis_2019/train/JPEGImages").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.json: field 'categories': id 1 is 'airplane', 'person' expected"):
        DatasetCatalog.get("ytvis_2019_train")
    renamed = {i: name.replace("_", " ").upper() for i, name in YTVIS_2019_CLASSES.items()}
    write_json(tmp_path / "ytvis_2019/train.json", ytvis_data(categories=renamed))
    assert len(DatasetCatalog.get("ytvis_2019_train")) == 2


def test_class_lists_are_complete() -> None:
    assert len(YTVIS_2019_CLASSES) == len(YTVIS_2021_CLASSES) == 40 and len(OVIS_CLASSES) == 25
    assert YTVIS_2019_CLASSES[1] == "person" and YTVIS_2019_CLASSES[40] == "tennis_racket"
    assert YTVIS_2021_CLASSES[26] == "person" and YTVIS_2021_CLASSES[40] == "zebra"
    assert OVIS_CLASSES[1] == "Person" and OVIS_CLASSES[25] == "Vehical"


# The user's own


def test_a_users_data_set_by_one_line_of_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_ytvis(tmp_path / "birds", ytvis_data())
    cfg = small_cfg("birds_train", DATASETS__YTVIS_STYLE=[["birds_train", "birds/labels.json", "birds/images"]])
    item = next(iter(build_train_loader(cfg)))[0]
    assert item["label_set"] == "birds" and item["image"].shape[0] == 4
    cfg.DATASETS.YTVIS_STYLE = [["birds_train", "birds/labels.json", "birds/images", "animals"]]
    register_from_config(cfg)
    assert get_records("birds_train") and MetadataCatalog.get("birds_train").label_set == "animals"
    for wrong in (["birds_train", "labels.json"], "birds_train", [1, 2, 3]):
        cfg.DATASETS.YTVIS_STYLE = [wrong]
        with pytest.raises(UserError, match=r"DATASETS\.YTVIS_STYLE: .* a list of name, annotation file"):
            register_from_config(cfg)


def test_importing_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    register_ytvis_style("nowhere_val", "a.json", "b")
    assert MetadataCatalog.get("nowhere_val").label_set == "nowhere"
    with pytest.raises(UserError, match=r"nowhere_val: no annotation file found; looked for .*a\.json"):
        get_records("nowhere_val")
    assert json.dumps(MetadataCatalog.get("ytvis_2021_val").thing_classes)


# What is there twice, or in another form


def found_in(folder: Path, data: dict[str, Any]) -> list[str]:
    register_ytvis_style("own_train", *write_ytvis(folder, data))
    return check_dataset("own_train").problems


def test_ids_and_sizes_with_a_decimal_point_are_the_same_numbers(tmp_path: Path) -> None:
    expected = read(tmp_path, ytvis_data())
    data = ytvis_data()
    for entry in (*data["videos"], *data["categories"], *data["annotations"]):
        entry.update({key: float(value) for key, value in entry.items() if type(value) is int})
    data["annotations"][0].update(video_id="10", category_id="2")
    found = read(tmp_path, data)
    assert [(r.video_id, r.height, r.width, r.instances) for r in found] == [
        (r.video_id, r.height, r.width, r.instances) for r in expected
    ]
    assert all(type(r.video_id) is int and type(r.height) is int for r in found)
    assert found_in(tmp_path, data) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["videos"][1].update(file_names=d["videos"][0]["file_names"]), "has the same frames as video 10"),
        (lambda d: d["videos"][1].update(file_names=["c/f9.jpg", "c/f10.jpg", "c/f11.jpg"]), None),
        (lambda d: d["videos"][1].update(file_names=["c/1.jpg", "c/1.jpg", "c/2.jpg"]), "'c/1.jpg' is listed twice"),
        (lambda d: d["videos"][1].update(file_names=["c/f1.jpg", "c/f10.jpg", "c/f9.jpg"]), "sorted as text"),
        (lambda d: d["categories"][1].update(name="cat"), "2 categories have the name 'cat' (ids [1, 2])"),
        (lambda d: d["annotations"][2].update(video_id=99), "1 annotations of videos that the file does not"),
        (lambda d: d["videos"][1].update(file_names=[], length=0), "left out 1 videos of 0 frames"),
        (lambda d: d["annotations"].append({**d["annotations"][0], "id": 9}), "the same masks as annotations[0]"),
    ],
)  # fmt: skip
def test_repeated_and_unmatched_entries_fail_the_check(
    tmp_path: Path, change: Any, message: str | None
) -> None:
    data = ytvis_data()
    change(data)
    if message and "0 frames" in message:
        data["annotations"].pop()
    problems = found_in(tmp_path, data)
    assert [text for text in problems if message is not None and message not in text] == []
    assert len(problems) == (message is not None)


def test_an_object_without_any_mask_is_never_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So does the official evaluator: its area is 0, so that it is among all objects and among the small ones."""
    data = ytvis_data()
    data["annotations"][0]["segmentations"] = [None] * 3
    records = read(tmp_path, data)
    assert "labels.json: 1 annotations without any mask; each counts as an object that is never found" in caplog.text
    assert [instance.instance_id for instance in records[0].instances] == [1, 2]
    truth = [track for record in records for track in true_tracks(record)]
    evaluation = TrackEval(range(2))
    for record in records:
        of_video = [track for track in truth if track.video_id == record.video_id]
        evaluation.add(record.video_id, of_video, [replace(t, score=0.5) for t in of_video if any(t.masks)])
    found = evaluation.scores(["cat", "dog"])["per_category"]
    assert found == {"cat": pytest.approx(100), "dog": 0}
    del data["annotations"][1:]
    assert not any(map(has_instances, read(tmp_path, data))), "nothing to train on"


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a", "b"], ["a", "b"]),
        (["MOT-01/img1", "MOT-02/img1"], ["MOT-01", "MOT-02"]),
        (["x/left", "y/left"], ["x_left", "y_left"]),
        (["JPEGImages", "JPEGImages"], ["10", "11"]),
        ([".", "."], ["10", "11"]),
        (["v", "V"], ["10", "11"]),  # one file where the file system takes no notice of case
        (["same", "same"], ["10", "11"]),
    ],
)
def test_no_two_videos_have_one_name(tmp_path: Path, folders: list[str], names: list[str]) -> None:
    data = ytvis_data()
    for v, (video, folder) in enumerate(zip(data["videos"], folders, strict=True)):
        video["file_names"] = [f"{folder}/v{v}_{t:05d}.jpg" for t in range(3)]
    assert [record.name for record in read(tmp_path, data)] == names
