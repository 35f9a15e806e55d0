# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections import defaultdict
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from ausm_d2.errors import UserError
from ausm_d2.evaluation import ytvis
from ausm_d2.masks.rle import encode
from tests.evaluation.cases import random_case, uncompressed
from tests.new_process import ROOT, run_python


def write(folder: Path, truth: Any, results: Any) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "results.json"
    for path, data in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(data))
    return paths


def score(folder: Path, truth: Any, results: Any) -> dict[str, Any]:
    """Through files, as written by other tools."""
    paths = write(folder, truth, results)
    read = ytvis.read_truth(paths[0])
    return ytvis.score(read, ytvis.read_results(paths[1], read))


def block(pixels: int, size: int = 10) -> np.ndarray:
    """bool (size, size) with the given number of pixels set."""
    return (np.arange(size * size) < pixels).reshape(size, size)


def hand_made() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two videos of 10x10 pixels. Video 1: one object, 20 pixels in both frames; video 2: one, in its only frame."""
    video = {"height": 10, "width": 10}
    truth = {
        "videos": [{"id": 1, "length": 2, **video}, {"id": 2, "length": 1, **video}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 7, "iscrowd": 0, "segmentations": [uncompressed(block(20))] * 2},
            {"id": 2, "video_id": 2, "category_id": 7, "iscrowd": 0, "segmentations": [uncompressed(block(20))]},
        ],
    }
    results = [
        # 20 / (20 + 20) = 0.5 of the object of video 1
        {"video_id": 1, "category_id": 7, "score": 0.9, "segmentations": [encode(block(20)), None]},
        # (20 + 17) / (20 + 20) = 0.925 of the same
        {"video_id": 1, "category_id": 7, "score": 0.8, "segmentations": [encode(block(20)), encode(block(17))]},
    ]
    return truth, results


def test_a_case_computed_by_hand(tmp_path: Path) -> None:
    """Two objects, two tracks, and ten thresholds.

    At 0.50 the first track takes the object and the second is wrong: precision 1, 1/2 at recall 1/2, 1/2. Interpolated,
    it is 1 at the 51 of 101 recalls up to 1/2 and 0 beyond: 51/101.
    At 0.55, 0.60, ..., 0.90 (8 of them) the first is wrong and the second right: precision 0, 1/2 at recall 0, 1/2, so
    1/2 at 51 recalls: 51/202. At 0.95 both are wrong: 0.
    AR1 counts one track a video: recall 1/2 at 0.50 only. AR10 up to ten: 1/2 at 0.50 to 0.90, 9 thresholds.
    """
    expected = {
        "AP": 100 * (51 / 101 + 8 * 51 / 202) / 10,
        "AP50": 100 * 51 / 101,
        "AP75": 100 * 51 / 202,
        "APs": 100 * (51 / 101 + 8 * 51 / 202) / 10,  # 20 pixels are few
        "APm": None,
        "APl": None,
        "AR1": 100 * 0.5 / 10,
        "AR10": 100 * 0.5 * 9 / 10,
    }
    scores = score(tmp_path, *hand_made())
    assert scores.pop("per_category") == {"cat": pytest.approx(expected["AP"], abs=1e-9), "dog": None}
    assert scores == pytest.approx(expected, abs=1e-9)


def test_crowds_are_not_missed_and_take_any_number_of_tracks(tmp_path: Path) -> None:
    """The object of video 1 becomes a crowd: both tracks that are on it count for nothing where they overlap it enough.

    At 0.50 both do; at 0.55 to 0.90 the first is wrong, at 0.95 both are. Of the object of video 2 a third track of
    score 0.1 has all: precision 1 at 0.50, 1/2 at 0.55 to 0.90 and 1/3 at 0.95, at all recalls.
    """
    truth, results = hand_made()
    truth["annotations"][0]["iscrowd"] = 1
    results.append({"video_id": 2, "category_id": 7, "score": 0.1, "segmentations": [encode(block(20))]})
    assert score(tmp_path, truth, results)["AP"] == pytest.approx(100 * (1 + 8 / 2 + 1 / 3) / 10, abs=1e-9)


def test_sizes_are_those_of_the_file_or_else_of_the_masks(tmp_path: Path) -> None:
    truth, results = hand_made()
    truth["annotations"][0]["areas"] = [None, 128**2 + 0.5]  # mean over the frames that have one
    truth["annotations"][1]["areas"] = None
    scores = score(tmp_path, truth, results)
    # The tracks are small: to APm they are no mistakes, and the one that takes the object is right.
    assert scores["APm"] == pytest.approx(100 * (1 + 8) / 10, abs=1e-9)
    assert scores["APs"] == pytest.approx(0)
    assert scores["APl"] is None


class Official(COCOeval):
    """The official evaluator's rules, written naively: overlaps of dense masks, pair by pair and frame by frame."""

    def __init__(self, truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        super().__init__(iouType="segm")
        self.params.imgIds = [video["id"] for video in truth["videos"]]
        self.params.catIds = [category["id"] for category in truth["categories"]]
        self.params.areaRng = [[0, 1e5**2], [0, 128**2], [128**2, 256**2], [256**2, 1e5**2]]
        self._sides = truth["annotations"], [{**entry, "iscrowd": 0} for entry in results]

    def _prepare(self) -> None:
        self._gts, self._dts = (defaultdict(list) for _ in range(2))
        for groups, entries in zip((self._gts, self._dts), self._sides, strict=True):
            for index, entry in enumerate(entries):
                masks = []
                for rle in entry["segmentations"]:
                    if rle is not None and isinstance(rle["counts"], list):
                        rle = coco_mask.frPyObjects(rle, *rle["size"])
                    masks.append(None if rle is None else coco_mask.decode(rle).astype(bool))
                areas = [mask.sum() for mask in masks if mask is not None and mask.any()]
                area = float(np.mean(areas)) if areas else 0.0
                groups[entry["video_id"], entry["category_id"]].append(
                    {**entry, "id": index + 1, "masks": masks, "area": area, "ignore": entry["iscrowd"]}
                )

    def computeIoU(self, imgId: int, catId: int) -> Any:
        truth, results = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth and not results:
            return []
        order = np.argsort([-entry["score"] for entry in results], kind="mergesort")[:100]
        overlaps = np.zeros((len(order), len(truth)))
        for row, place in enumerate(order):
            for column, annotated in enumerate(truth):
                shared = union = 0
                for a, b in zip(results[place]["masks"], annotated["masks"], strict=True):
                    a, b = (np.zeros((1, 1), bool) if mask is None else mask for mask in (a, b))
                    shared, union = shared + int((a & b).sum()), union + int((a | b).sum())
                overlaps[row, column] = shared / union if union else 0
        return overlaps

    def scores(self) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
            self.summarize()
        return {name: None if v < 0 else 100 * v for name, v in zip(ytvis.METRICS, self.stats, strict=False)}


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_official_rules(tmp_path: Path, seed: int) -> None:
    # Sizes around 128^2 and 256^2 pixels in every third case
    truth, results = random_case(np.random.default_rng(seed), size=500 if seed % 3 == 0 else 40)
    scores = score(tmp_path, truth, results)
    assert scores.pop("per_category")["class3"] is None
    assert scores == pytest.approx(Official(truth, results).scores(), abs=1e-6)


def test_equals_trackeval(tmp_path: Path) -> None:
    """TrackMAP on trackeval's own YouTube-VIS data set. Without crowds, which it treats differently."""
    from trackeval.datasets import YouTubeVIS
    from trackeval.metrics import TrackMAP

    for seed in range(4):
        truth, results = random_case(np.random.default_rng(100 + seed), size=500, crowds=False)
        ours = score(tmp_path, truth, results)
        folder = tmp_path / str(seed)
        truth_folder, result_folder = (
            folder / "gt" / "youtube_vis_x",
            folder / "trackers" / "youtube_vis_x" / "us" / "data",
        )
        for path, data in ((truth_folder, truth), (result_folder, results)):
            path.mkdir(parents=True)
            (path / "data.json").write_text(json.dumps(data))
        config = {
            "GT_FOLDER": f"{folder}/gt/",
            "TRACKERS_FOLDER": f"{folder}/trackers/",
            "SPLIT_TO_EVAL": "x",
            "PRINT_CONFIG": False,
        }
        for most, names in ((1, ("AR1",)), (10, ("AR10",)), (100, ("AP", "AP50", "AP75", "APs", "APm", "APl"))):
            data_set = YouTubeVIS(config)
            data_set.global_tid_counter = 1  # to TrackMAP id 0 means "not matched"
            metric = TrackMAP(
                {
                    "AREA_RANGES": [[0, 128**2], [128**2, 256**2], [256**2, 1e10]],
                    "USE_TIME_RANGES": False,
                    "IOU_THRESHOLDS": np.linspace(0.5, 0.95, 10),
                    "MAX_DETECTIONS": most,
                    "PRINT_CONFIG": False,
                }
            )
            by_class: dict[str, dict[str, Any]] = defaultdict(dict)
            for video in data_set.seq_list:
                raw = data_set.get_raw_seq_data("us", video)
                for name in data_set.class_list:
                    by_class[name][video] = metric.eval_sequence(data_set.get_preprocessed_seq_data(raw, name))
            total = metric.combine_classes_class_averaged(
                {name: metric.combine_sequences(videos) for name, videos in by_class.items()}
            )
            theirs = {
                "AP": total["AP_all"].mean(),
                "AP50": total["AP_all"][0],
                "AP75": total["AP_all"][5],
                "APs": total["AP_area_s"].mean(),
                "APm": total["AP_area_m"].mean(),
                "APl": total["AP_area_l"].mean(),
                "AR1": total["AR_all"].mean(),
                "AR10": total["AR_all"].mean(),
            }
            for name in names:
                expected = None if theirs[name] < 0 else 100 * theirs[name]
                assert ours[name] == pytest.approx(expected, abs=1e-6), (seed, name)


def test_results_of_another_tool_are_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers as text, which a warning says, extra fields, null masks, run lengths as lists: the same scores."""
    truth, results = random_case(np.random.default_rng(3))
    expected = score(tmp_path, truth, results)
    for entry in results:
        entry.update(
            score=str(entry["score"]), video_id=str(entry["video_id"]), category_id=float(entry["category_id"])
        )
        entry["note"] = {"anything": []}
        entry["segmentations"] = [
            mask and uncompressed(coco_mask.decode(mask).astype(bool)) for mask in entry["segmentations"]
        ]
    for annotation in truth["annotations"]:
        del annotation["areas"], annotation["bboxes"]
    assert "as text" not in caplog.text
    assert score(tmp_path, truth, results) == expected
    assert "results.json: numbers given as text are read as numbers, in the fields score\n" in caplog.text


def test_ground_truth_of_another_tool_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids, sizes and flags as text; no ``iscrowd``; masks compressed or not."""
    truth, results = random_case(np.random.default_rng(5))
    expected = score(tmp_path, truth, results)
    for video in truth["videos"]:
        video["id"] = str(video["id"])
        video["height"] = str(video["height"])
    for place, annotation in enumerate(truth["annotations"]):
        annotation["iscrowd"] = str(annotation["iscrowd"])
        if annotation["iscrowd"] == "0" and place % 2:
            del annotation["iscrowd"]
    assert any(annotation.get("iscrowd") == "1" for annotation in truth["annotations"])
    assert score(tmp_path, truth, results) == expected
    assert "truth.json: numbers given as text are read as numbers, in the fields height, iscrowd\n" in caplog.text


def test_categories_and_labels_that_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth, results = hand_made()
    expected = score(tmp_path, truth, results)
    assert "results.json: no tracks in 1 of 2 videos (such as 2)" in caplog.text
    assert score(tmp_path, truth, [])["AP"] == 0
    assert "results.json: no tracks in 2 of 2 videos (such as 1)" in caplog.text
    results.append({**results[0], "category_id": 99, "score": 1.0})
    truth["annotations"].append({**truth["annotations"][0], "id": 3, "category_id": 99})
    assert score(tmp_path, truth, results) == expected
    assert "categories that the ground truth does not list: [99]" in caplog.text
    assert "truth.json: left out 1 annotations of videos or categories that it does not list" in caplog.text
    for labels in (None, []):
        scores = score(tmp_path, {**truth, "annotations": labels}, results)
        assert scores == {**dict.fromkeys(ytvis.METRICS), "per_category": {"cat": None, "dog": None}}
    assert ytvis.score_files(*write(tmp_path, {**truth, "annotations": None}, results))["AP"] is None
    assert "truth.json has no annotations, so there is nothing to score" in caplog.text
    assert score(tmp_path, truth, [])["AP"] == 0


BAD_RESULTS = [
    ({"score": "high"}, "field 'score' is 'high', expected a finite number"),
    ({"score": None}, "field 'score' is None, expected a finite number"),
    ({"score": float("nan")}, "field 'score' is nan, expected a finite number"),
    ({"score": True}, "field 'score' is True, expected a finite number"),
    *(({"score": text}, f"field 'score' is '{text}', expected a finite") for text in ("nan", "1_0", " 1", "", "1e999")),
    ({"score": 10**400}, f"field 'score' is 1{'0' * 39}, expected a finite number"),
    ({"video_id": 9}, "the ground truth has no video 9"),
    ({"video_id": 1.5}, r"the ground truth has no video 1\.5"),
    ({"video_id": True}, "field 'video_id' is True, expected a number or text"),
    ({"segmentations": [None, 0]}, r"field 'segmentations'\[1\]: expected null, run lengths"),
    (
        {"segmentations": [None, {"size": [10, 10], "counts": {}}]},
        r"'segmentations'\[1\]: counts is dict, expected text",
    ),
    ({"segmentations": [None, {"size": [10, 10], "counts": "\ud800"}]}, r"\[1\]: counts do not describe 10x10"),
    ({"segmentations": [None, [[float("nan")] * 6]]}, r"field 'segmentations'\[1\]: expected polygons"),
    ({"segmentations": [None, [[1e300] * 6]]}, r"field 'segmentations'\[1\]: expected polygons"),
    ({"video_id": [1]}, r"field 'video_id' is \[1\], expected a number or text"),
    ({"category_id": None}, "field 'category_id' is None, expected a number or text"),
    ({"segmentations": None}, "field 'segmentations' is NoneType, expected one for each of 2 frames"),
    ({"segmentations": [None]}, "field 'segmentations' is 1 entries, expected one for each of 2 frames"),
    ({"segmentations": [None, "mask"]}, r"field 'segmentations'\[1\]: expected null, run lengths"),
    ({"segmentations": [None, {"size": [9, 9], "counts": "a"}]}, r"field 'segmentations'\[1\]: size \[9, 9\]"),
    ({"segmentations": [None, {"size": [10, 10], "counts": [1, 2]}]}, r"'segmentations'\[1\]: run lengths add up to 3"),
    (
        {"segmentations": [None, {"size": [10, 10], "counts": "53"}]},
        r"'segmentations'\[1\]: counts do not describe 10x10",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_RESULTS)
def test_malformed_results(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    truth, results = hand_made()
    results[1].update(change)
    with pytest.raises(UserError, match=rf"results.json: entry 1 .*{message}") as error:
        score(tmp_path, truth, results)
    assert "\n" not in str(error.value)


def test_malformed_files(tmp_path: Path) -> None:
    truth, results = hand_made()
    for data, message in (
        ({"results": []}, "expected a list of tracks, found a dict"),
        ([[]], "entry 0: expected an object with fields, found list"),
        ([{"video_id": 1, "category_id": 7}], r"entry 0 \(video_id 1\): field 'segmentations' is missing"),
    ):
        with pytest.raises(UserError, match=message):
            score(tmp_path, truth, data)
    for change, message in (
        ({"file_names": 3}, r"videos\[0\]: field 'file_names' is 3, expected a list"),
        ({"length": "2.5"}, r"videos\[0\]: field 'length' is '2.5', expected a whole number"),
        ({"height": 0, "length": 2}, r"videos\[0\]: height and width are 0 and 10, expected pixels from 1 on"),
        ({"id": [1], "length": 2}, r"videos\[0\]: field 'id' is \[1\], expected a whole number or text"),
    ):
        first = {"id": 1, "height": 10, "width": 10, **change}
        with pytest.raises(UserError, match="truth.json: " + message):
            score(tmp_path, {**truth, "videos": [first, truth["videos"][1]]}, results)
    twice = [truth["annotations"][0], {**truth["annotations"][1], "id": truth["annotations"][0]["id"]}]
    with pytest.raises(UserError, match=r"annotations\[1\] \(video_id 2\): field 'id' is 1, which another annotation"):
        score(tmp_path, {**truth, "annotations": twice}, results)
    for crowd in (2, "yes", -1, float("nan"), []):
        changed = [{**truth["annotations"][0], "iscrowd": crowd}, truth["annotations"][1]]
        with pytest.raises(UserError, match=r"annotations\[0\] \(video_id 1\): field 'iscrowd' is .*, expected "):
            score(tmp_path, {**truth, "annotations": changed}, results)
    for areas in (5, "123", ["many", None], [float("nan"), 1], [True, 1]):
        changed = [{**truth["annotations"][0], "areas": areas}, truth["annotations"][1]]
        with pytest.raises(UserError, match=r"annotations\[0\] \(video_id 1\): field .areas. is .*, expected a list"):
            score(tmp_path, {**truth, "annotations": changed}, results)
    for field in ("videos", "categories"):
        with pytest.raises(UserError, match=f"truth.json: field '{field}' is NoneType, expected a list"):
            score(tmp_path, {**truth, field: None}, results)
    truth["annotations"][1]["segmentations"] = []
    with pytest.raises(
        UserError, match=r"truth.json: annotations\[1\] \(video_id 2\): field 'segmentations' is 0 entries"
    ):
        score(tmp_path, truth, results)
    (tmp_path / "long.json").write_text("[" + "9" * 5000 + "]")
    with pytest.raises(UserError, match=r"long\.json: not read: a number of thousands of digits"):
        ytvis.read_truth(tmp_path / "long.json")
    (tmp_path / "deep.json").write_text("[" * 100000)
    with pytest.raises(UserError, match=r"deep\.json: not read: nested too deeply"):
        ytvis.read_truth(tmp_path / "deep.json")
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        ytvis.read_truth(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match=r"list\.json: expected an object with videos, .* found a list"):
        ytvis.read_truth(tmp_path / "list.json")


def test_the_command(tmp_path: Path) -> None:
    truth, results = hand_made()
    paths = [str(path) for path in write(tmp_path, truth, results)]
    # In a process of its own: it must do without Detectron2.
    code = "import sys; from ausm_d2.evaluation.ytvis import main; main(); assert 'detectron2' not in sys.modules"
    command = [sys.executable, "-c", code, *paths, "--json", str(tmp_path / "out.json")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    assert "25.25" in printed
    scores = json.loads((tmp_path / "out.json").read_text())
    assert scores["AP"] == pytest.approx(25.2475, abs=1e-4)
    assert scores["APl"] is None and scores["per_category"]["dog"] is None
    assert list(scores) == [*ytvis.METRICS, "per_category"]


def test_the_commands_errors(new_processes: ForkServerContext, tmp_path: Path) -> None:
    truth, results = hand_made()
    results[0]["score"] = "?"
    paths = [str(path) for path in write(tmp_path, truth, results)]
    command = ["-m", "ausm_d2.evaluation.ytvis", *paths, "--json", str(tmp_path / "out.json")]
    done = run_python(new_processes, command, tmp_path, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and "entry 0" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_two_classes_of_one_name_have_an_entry_each(tmp_path: Path) -> None:
    truth, results = hand_made()
    truth["categories"][1]["name"] = "cat"
    scores = score(tmp_path, truth, results)
    assert list(scores["per_category"]) == ["cat (id 7)", "cat (id 8)"]
    assert scores["per_category"]["cat (id 7)"] == scores["AP"] and scores["per_category"]["cat (id 8)"] is None


def test_ids_that_two_entries_have_are_refused(tmp_path: Path) -> None:
    for name, message in (("videos", "which another video has"), ("categories", "which another category has")):
        truth, results = hand_made()
        truth[name][1]["id"] = float(truth[name][0]["id"])
        with pytest.raises(UserError, match=rf"{name}\[1\]: field 'id' is \d, {message}"):
            score(tmp_path, truth, results)


def test_numbers_written_with_a_decimal_point_are_the_same_numbers(tmp_path: Path) -> None:
    truth, results = hand_made()
    expected = score(tmp_path, truth, results)
    for entry in (*truth["videos"], *truth["categories"], *truth["annotations"], *results):
        entry.update({key: float(value) for key, value in entry.items() if type(value) is int})
    assert score(tmp_path, truth, results) == expected
