# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ausm_d2.config import add_ausm_config
from ausm_d2.data.build import scored_records
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation import ytvis
from ausm_d2.evaluation.evaluators import VideoEvaluators, build_evaluator
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.io import atomic_write
from ausm_d2.masks.rle import encode
from ausm_d2.processes import leave_together
from tests.data.stubs import ArrayFrames, ListedMasks
from tests.evaluation.cases import random_case

VIS, VOS, YTVOS, IMAGES, NAMES = (
    "eval_vis",
    "eval_vos",
    "eval_ytvos",
    "eval_images",
    ("class0", "class1", "class2", "class3"),
)

Outputs = dict[int, dict[str, Any]]  # by video id


def frames(record: dict[str, Any]) -> ArrayFrames:
    return ArrayFrames([np.zeros((record["height"], record["width"], 3), np.uint8)] * record["length"])


def vis_data(seed: int, **options: Any) -> tuple[list[VideoRecord], Outputs, tuple[Any, Any]]:
    """Records and model outputs, in memory and as files."""
    truth, results = random_case(np.random.default_rng(seed), **options)
    place = {category["id"]: index for index, category in enumerate(truth["categories"])}
    records = []
    for video in truth["videos"]:
        of_video = [entry for entry in truth["annotations"] if entry["video_id"] == video["id"]]
        records.append(
            VideoRecord(
                video_id=video["id"],
                name=f"video{video['id']}",
                height=video["height"],
                width=video["width"],
                frames=frames(video),
                instances=[Instance(e["id"], place[e["category_id"]], bool(e["iscrowd"])) for e in of_video],
                masks=ListedMasks({entry["id"]: entry["segmentations"] for entry in of_video}),
            )
        )
    outputs: Outputs = {record.video_id: {"video_id": record.video_id, "tracks": []} for record in records}
    for index, entry in enumerate(results):
        track = {**entry, "track_id": index, "category_id": place[entry["category_id"]]}
        outputs[entry["video_id"]]["tracks"].append(track)
    return records, outputs, (truth, results)


def vos_data() -> tuple[list[VideoRecord], Outputs]:
    """Three videos of two moving squares; predictions are one pixel off, and object 9 has none in video 2."""
    records, outputs = [], {}
    for video_id in range(3):
        masks: dict[int, list[Any]] = {}
        for object_id in (4, 9):
            masks[object_id] = [np.zeros((30, 40), bool) for _ in range(5)]
            for frame, mask in enumerate(masks[object_id]):
                mask[object_id : object_id + 8, 3 * frame : 3 * frame + 8 + video_id] = True
        masks[9][0] = None
        prompts = {4: 0, 9: 1}
        size = {"height": 30, "width": 40, "length": 5}
        record = VideoRecord(
            video_id, f"video{video_id}", 30, 40, frames(size), [Instance(i, 0) for i in masks], ListedMasks(masks)
        )
        record.prompt_frames = prompts
        record.extra["object_categories"] = {4: "dog", 9: "cat"}
        records.append(record)
        moved = {
            i: [None if m is None else encode(np.roll(m, 1, axis=1)) for m in of_one] for i, of_one in masks.items()
        }
        if video_id == 2:
            moved[9] = [None] * 5
        outputs[video_id] = {"video_id": video_id, "objects": moved}
    return records, outputs


@pytest.fixture(autouse=True)
def _data_sets() -> Iterator[None]:
    vis, vos = vis_data(0)[0], vos_data()[0]
    images = vis_data(1, videos=8)[0]
    for record in images:
        record.frames = ArrayFrames(record.frames.arrays[:1])
        record.masks = ListedMasks({i: m[:1] for i, m in record.masks.masks.items() if m[0]})
        record.instances = [instance for instance in record.instances if instance.instance_id in record.masks.masks]
        record.extra["areas"] = {instance.instance_id: [90.0 * instance.instance_id] for instance in record.instances}
    for name, kind, task, records in (
        (VIS, "ytvis", "vis", vis),
        (VOS, "vos", "vos", vos),
        (YTVOS, "ytvos", "vos", vos),
        (IMAGES, "coco", "image", images),
    ):
        DatasetCatalog.register(name, lambda records=records: records)
        ids = {3 * index + 2: index for index in range(4)}
        classes = list(NAMES)
        MetadataCatalog.get(name).set(
            evaluator_type=kind, task=task, thing_classes=classes, thing_dataset_id_to_contiguous_id=ids
        )
    yield
    for name in (VIS, VOS, YTVOS, IMAGES):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def cfg_for(folder: Path, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", 0, *opts])
    return cfg


def run(evaluator: VideoEvaluators, name: str, outputs: Outputs, stop_after: int | None = None) -> dict[str, Any]:
    """inference_on_dataset with a loader that leaves out finished videos."""
    finished = evaluator.finished_video_ids()
    evaluator.reset()
    left = [record for record in DatasetCatalog.get(name) if record.video_id not in finished]
    for record in left[:stop_after]:
        evaluator.process([{"record": record}], [outputs[record.video_id]])
    return evaluator.evaluate() if stop_after is None else {}


def test_ap_of_records_is_that_of_the_files(tmp_path: Path) -> None:
    _, outputs, (truth, results) = vis_data(0)
    scores = run(build_evaluator(VIS, cfg_for(tmp_path, "TEST.AUSM.TRACKING", True)), VIS, outputs)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    read = ytvis.read_truth(tmp_path / "truth.json")
    written = tmp_path / "inference" / VIS / "results.json"
    expected = ytvis.score(read, ytvis.read_results(written, read))
    per_category = {f"AP-{name}": value for name, value in expected.pop("per_category").items()}
    assert scores["segm"] == {k: v for k, v in {**expected, **per_category}.items() if v is not None}
    assert "AP-class3" not in scores["segm"]  # no ground truth: no entry, and no nan
    assert {"hidden", "followed", "back"} <= set(scores["reappearance"])
    assert set(scores["tracking"]) == {"HOTA", "DetA", "AssA", "mAP"}
    # The data set's own category ids, and nothing lost
    assert sorted(entry["score"] for entry in json.loads(written.read_text())) == sorted(r["score"] for r in results)
    assert {entry["category_id"] for entry in json.loads(written.read_text())} <= {2, 5, 8, 11}


def test_j_and_f(tmp_path: Path) -> None:
    _, outputs = vos_data()
    scores = run(build_evaluator(VOS, cfg_for(tmp_path)), VOS, outputs)
    # A square of w columns, one off: (w - 1) / (w + 1); w = 8, 9, 10 in the three videos, nothing for the last object
    j = [7 / 9, 7 / 9, 8 / 10, 8 / 10, 9 / 11, 0]
    f = [1, 1, 1, 1, 1, 0]
    assert scores["vos"] == pytest.approx(
        {"J&F": 50 * np.mean(j) + 50 * np.mean(f), "J": 100 * np.mean(j), "F": 100 * np.mean(f)}
    )
    lines = (tmp_path / "inference" / VOS / "objects.csv").read_text().splitlines()
    assert lines[0] == "video,object,J&F,J,F" and len(lines) == 7
    assert lines[-1] == "video2,9,0.0000,0.0000,0.0000"


def test_j_by_the_area_of_the_object(tmp_path: Path) -> None:
    """The squares of 8 x 8, 9 and 10 pixels cover 5.3, 6 and 6.7 percent of 30 x 40 pixels: one class."""
    _, outputs = vos_data()
    scores = run(build_evaluator(VOS, cfg_for(tmp_path, "TEST.AUSM.J_BY_AREA", True)), VOS, outputs)
    assert set(scores) == {"vos", "reappearance", "area"} and list(scores["area"]) == ["J<=8%"]
    found = [7 / 9] * (4 + 3) + [8 / 10] * (4 + 3) + [9 / 11] * 4 + [0] * 3  # frames from the one after the prompt on
    assert scores["area"]["J<=8%"] == pytest.approx(100 * np.mean(found))


def test_every_nth_frame_can_be_scored_alone(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path, "TEST.AUSM.EVERY_NTH", 2)
    assert [record.length for record in scored_records(cfg, VOS)] == [3, 3, 3]
    for evaluator in build_evaluator(VOS, cfg)._evaluators:
        assert [record.length for record in evaluator.records] == [3, 3, 3]
    cfg.TEST.AUSM.EVERY_NTH = 0
    with pytest.raises(UserError, match=r"TEST\.AUSM\.EVERY_NTH: 0, expected 1 or more"):
        scored_records(cfg, VOS)


def test_g_of_youtube_vos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, outputs = vos_data()
    scores = run(build_evaluator(YTVOS, cfg_for(tmp_path)), YTVOS, outputs)["vos"]
    assert "G" not in scores and "no G" in caplog.text
    MetadataCatalog.get(YTVOS).seen_categories = {"dog"}
    scores = run(build_evaluator(YTVOS, cfg_for(tmp_path)), YTVOS, outputs)["vos"]
    j_seen, j_unseen, f_seen, f_unseen = np.mean([7 / 9, 0.8, 9 / 11]), np.mean([7 / 9, 0.8, 0]), 1, 2 / 3
    assert scores["J_seen"] == pytest.approx(100 * j_seen) and scores["J_unseen"] == pytest.approx(100 * j_unseen)
    assert scores["F_seen"] == pytest.approx(100 * f_seen) and scores["F_unseen"] == pytest.approx(100 * f_unseen)
    assert scores["G"] == pytest.approx(25 * (j_seen + j_unseen + f_seen + f_unseen))


def test_images_as_cocoeval_scores_them(tmp_path: Path) -> None:
    records: list[VideoRecord] = DatasetCatalog.get(IMAGES)
    _, outputs, _ = vis_data(1, videos=8)
    for output in outputs.values():
        for track in output["tracks"]:
            track["segmentations"] = track["segmentations"][:1]
    scores = run(build_evaluator(IMAGES, cfg_for(tmp_path)), IMAGES, outputs)
    assert set(scores) == {"segm"}

    truth = COCO()
    truth.dataset = {"images": [], "annotations": [], "categories": [{"id": 3 * i + 2} for i in range(4)]}
    for record in records:
        truth.dataset["images"].append({"id": record.video_id, "height": record.height, "width": record.width})
        for instance in record.instances:
            truth.dataset["annotations"].append(
                {
                    "id": instance.instance_id,
                    "image_id": record.video_id,
                    "category_id": 3 * instance.category_id + 2,
                    "iscrowd": int(instance.is_crowd),
                    "segmentation": record.masks.read(0)[instance.instance_id],
                    "area": record.extra["areas"][instance.instance_id][0],
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(str(tmp_path / "inference" / IMAGES / "results.json"))
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = {name: 100 * v for name, v in zip(ytvis.METRICS, evaluation.stats, strict=False) if v > -1}
    assert {"APs", "APm"} <= set(expected)
    assert {name: v for name, v in scores["segm"].items() if "-" not in name} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", [VIS, VOS])
def test_an_interrupted_evaluation_is_resumed(tmp_path: Path, name: str) -> None:
    outputs = vis_data(0)[1] if name == VIS else vos_data()[1]
    expected = run(build_evaluator(name, cfg_for(tmp_path / "whole")), name, outputs)
    run(build_evaluator(name, cfg_for(tmp_path / "parts")), name, outputs, stop_after=2)
    # As a process that was killed leaves it: a file that was being written
    (tmp_path / "parts" / "inference" / name / "videos" / ".2.abcdefgh.json").write_text('{"tracks": [')
    resumed = build_evaluator(name, cfg_for(tmp_path / "parts", "TEST.AUSM.RESUME", True))
    done = [record.video_id for record in DatasetCatalog.get(name)][:2]
    assert resumed.finished_video_ids() == set(done)
    # What was done is not done again: these outputs are never asked for.
    assert run(resumed, name, {k: v for k, v in outputs.items() if k not in done}) == expected
    again = build_evaluator(name, cfg_for(tmp_path / "parts", "TEST.AUSM.RESUME", True))
    assert run(again, name, {}) == expected
    # Without RESUME everything is.
    assert build_evaluator(name, cfg_for(tmp_path / "parts")).finished_video_ids() == set()
    with pytest.raises(KeyError):
        run(build_evaluator(name, cfg_for(tmp_path / "parts")), name, {})


def _evaluate_in_a_process(folder: Path, name: str, outputs: Outputs) -> None:
    """An evaluation that is started again; ``done.txt`` gets a line for each video that it runs."""
    gc.disable()  # what other tests left, decoders with threads, is not to be closed in a forked process
    evaluator = build_evaluator(name, cfg_for(folder, "TEST.AUSM.RESUME", True))
    finished = evaluator.finished_video_ids()
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        if record.video_id not in finished:
            time.sleep(0.05)
            evaluator.process([{"record": record}], [outputs[record.video_id]])
            with (folder / "done.txt").open("a") as file:
                file.write(f"{record.video_id}\n")
    scores = evaluator.evaluate()
    with atomic_write(folder / "scores.json") as path:
        path.write_text(json.dumps(scores))


@pytest.mark.parametrize("name", [VIS, VOS])
def test_an_evaluation_killed_at_any_time_can_be_resumed(tmp_path: Path, name: str) -> None:
    outputs = vis_data(0)[1] if name == VIS else vos_data()[1]
    expected = run(build_evaluator(name, cfg_for(tmp_path / "whole")), name, outputs)
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    folder.mkdir()
    for attempt in range(30):
        process = get_context("fork").Process(target=_evaluate_in_a_process, args=(folder, name, outputs))
        process.start()
        process.join(rng.uniform(0, 0.2) if attempt < 20 else 60)
        process.kill()
        process.join()
        if (folder / "scores.json").exists():
            break
    assert attempt > 0, "never killed before its end"
    assert json.loads((folder / "scores.json").read_text()) == expected
    done = (folder / "done.txt").read_text().split()
    assert len(done) == len(set(done)), "a video that had results was run again"


def test_other_weights_or_settings_are_not_resumed(tmp_path: Path) -> None:
    outputs = vos_data()[1]
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"1")
    run(build_evaluator(VOS, cfg_for(tmp_path, "MODEL.WEIGHTS", str(weights))), VOS, outputs, stop_after=1)
    resume = ["TEST.AUSM.RESUME", True, "MODEL.WEIGHTS", str(weights)]
    changes_nothing = ["DATALOADER.NUM_WORKERS", 1, "TEST.AUSM.BASELINES", True, "MODEL.DEVICE", "cuda"]
    assert len(build_evaluator(VOS, cfg_for(tmp_path, *resume, *changes_nothing)).finished_video_ids()) == 1
    for opts in (["TEST.AUSM.FG_THRESHOLD", 0.4], ["INPUT.MIN_SIZE_TEST", 99]):
        with pytest.raises(UserError, match="RESUME is on, but the results there are of other weights or settings"):
            build_evaluator(VOS, cfg_for(tmp_path, *resume, *opts)).finished_video_ids()
    weights.write_bytes(b"22")
    with pytest.raises(UserError, match="other weights"):
        build_evaluator(VOS, cfg_for(tmp_path, *resume)).finished_video_ids()


def test_videos_without_results_are_an_error(tmp_path: Path) -> None:
    evaluator = build_evaluator(VOS, cfg_for(tmp_path))
    run(evaluator, VOS, vos_data()[1], stop_after=2)
    with pytest.raises(UserError, match="1 videos have no result, the first of them video2"):
        evaluator.evaluate()


def test_a_subset_of_a_data_set_can_be_scored(tmp_path: Path) -> None:
    records, outputs = vos_data()
    evaluator = build_evaluator(VOS, cfg_for(tmp_path), records=records[:1])
    evaluator.reset()
    evaluator.process([{"record": records[0]}], [outputs[0]])
    assert evaluator.evaluate()["vos"]["J"] == pytest.approx(100 * 7 / 9)


@pytest.mark.parametrize("name", [VIS, VOS])
def test_without_public_labels_there_is_a_submission(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = vis_data(0)[1] if name == VIS else vos_data()[1]
    records: list[VideoRecord] = DatasetCatalog.get(name)
    for record in records:
        if name == VIS:
            record.instances, record.masks = [], None
        else:
            record.labelled = [frame < 2 for frame in range(5)]  # the prompts, and nothing but them
            for object_id, prompt in record.prompt_frames.items():
                masks = record.masks.masks[object_id]
                masks[:] = [mask if frame == prompt else None for frame, mask in enumerate(masks)]
    MetadataCatalog.get(name).homepage = "https://example.org/benchmark"
    caplog.set_level(logging.INFO)
    assert run(build_evaluator(name, cfg_for(tmp_path)), name, outputs) == {}
    submission = tmp_path / "inference" / name / "submission.zip"
    assert submission.is_file()
    [message] = [record.getMessage() for record in caplog.records if "no public labels" in record.getMessage()]
    assert str(submission) in message and "https://example.org/benchmark" in message


def _evaluate_a_long_video(folder: Path, name: str) -> None:
    """1,000 frames of 720p with 20 tracks; ``grown.txt``: growth of memory in bytes."""
    gc.disable()  # what other tests left, decoders with threads, is not to be closed in a forked process
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size, length = (720, 1280), 1000
    rows, columns = np.ogrid[: size[0], : size[1]]
    tracks = []
    for i in range(20):
        centres = [(200 + 10 * i, 200 + 40 * i + 4 * step) for step in range(10)]
        rles = [encode((rows - y) ** 2 + (columns - x) ** 2 < 60**2) for y, x in centres]
        tracks.append([rles[frame % 10] for frame in range(length)])
    truth = json.loads(json.dumps(tracks))  # masks of their own, as files have them
    record = VideoRecord(
        video_id=1,
        name="long",
        height=size[0],
        width=size[1],
        frames=ArrayFrames([np.zeros((1, 1, 3), np.uint8)] * length),
        instances=[Instance(i, 0) for i in range(20)],
        masks=ListedMasks(dict(enumerate(truth))),
        labelled=[frame % (1 if name == VIS else 100) == 0 for frame in range(length)],
        prompt_frames=dict.fromkeys(range(20), 0),
    )
    output: dict[str, Any] = {"video_id": 1}
    if name == VIS:
        output["tracks"] = [
            {"track_id": i, "category_id": 0, "score": 0.5, "segmentations": masks} for i, masks in enumerate(tracks)
        ]
    else:
        output["objects"] = dict(enumerate(tracks))
    evaluator = build_evaluator(name, cfg_for(folder), records=[record])
    evaluator.reset()
    evaluator.process([{"record": record}], [output])
    scores = evaluator.evaluate()
    assert (scores["segm"]["AP"] if name == VIS else scores["vos"]["J"]) == 100
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (folder / "grown.txt").write_text(str(grown * 1024))


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize("name", [VIS, VOS])
def test_a_long_video_needs_less_than_2_gigabytes(tmp_path: Path, name: str) -> None:
    """Including the half gigabyte of a new process."""
    process = get_context("fork").Process(target=_evaluate_a_long_video, args=(tmp_path, name))
    process.start()
    process.join(120)
    process.kill()
    assert int((tmp_path / "grown.txt").read_text()) < 1e9


def test_tracking_scores_without_trackeval_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackeval", None)
    monkeypatch.delitem(sys.modules, "trackeval.metrics", raising=False)
    monkeypatch.delitem(sys.modules, "ausm_d2.evaluation.tracking", raising=False)
    build_evaluator(VIS, cfg_for(tmp_path))
    with pytest.raises(UserError, match=r"TEST\.AUSM\.TRACKING: needs the package trackeval"):
        build_evaluator(VIS, cfg_for(tmp_path, "TEST.AUSM.TRACKING", True))


def test_an_unknown_evaluator_type(tmp_path: Path) -> None:
    MetadataCatalog.get("eval_other").set(evaluator_type="sem_seg", task="vis")
    with pytest.raises(UserError, match="eval_other: metadata evaluator_type is 'sem_seg', expected one of"):
        build_evaluator("eval_other", cfg_for(tmp_path))
    MetadataCatalog.remove("eval_other")


_IMPORTED_BY = os.getpid()


def _in_a_process(rank: int, folder: Path, machines: int, stop_after: int | None) -> None:
    """One of two processes, with or without a shared disk; ``stop_after``: a first run is interrupted, then resumed."""
    assert os.getpid() != _IMPORTED_BY, "a new process would read the package again, in which a file may have changed"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    comm.create_local_process_group(2 // machines)
    disk = folder / str(rank if machines == 2 else 0)
    for name, outputs in ((VIS, vis_data(0)[1]), (VOS, vos_data()[1])):
        for last in (False, True) if stop_after is not None else (True,):
            evaluator = build_evaluator(name, cfg_for(disk, "TEST.AUSM.RESUME", stop_after is not None))
            finished = evaluator.finished_video_ids()
            evaluator.reset()
            left = [record for record in DatasetCatalog.get(name) if record.video_id not in finished]
            for record in left[1 - rank :: 2][: None if last else stop_after]:
                evaluator.process([{"record": record}], [outputs[record.video_id]])
                with (folder / f"{name}.{rank}.done").open("a") as file:
                    file.write(f"{record.video_id}\n")
            comm.synchronize()
        scores = evaluator.evaluate()
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(scores))
        else:
            assert not scores
    leave_together()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("machines", "stop_after"), [(1, None), (2, 1)])
def test_two_processes_score_as_one(tmp_path: Path, machines: int, stop_after: int | None) -> None:
    arguments = (tmp_path, machines, stop_after)
    torch.multiprocessing.start_processes(_in_a_process, arguments, nprocs=2, start_method="fork")
    for name, outputs in ((VIS, vis_data(0)[1]), (VOS, vos_data()[1])):
        expected = run(build_evaluator(name, cfg_for(tmp_path / "one")), name, outputs)
        assert json.loads((tmp_path / f"{name}.json").read_text()) == expected
        done = [line for rank in (0, 1) for line in (tmp_path / f"{name}.{rank}.done").read_text().split()]
        assert sorted(done) == sorted(str(video_id) for video_id in outputs), "each video once"


def test_results_of_another_run_on_one_machine_stop_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = build_evaluator(VOS, cfg_for(tmp_path, "TEST.AUSM.RESUME", True))
    monkeypatch.setattr(comm, "all_gather", lambda data: [data, ({0, 1}, None)])
    assert evaluator.finished_video_ids() == {0, 1}
    monkeypatch.setattr(comm, "all_gather", lambda data: [data, (set(), "there: other weights")])
    with pytest.raises(UserError, match="there: other weights"):
        evaluator.finished_video_ids()


@pytest.mark.parametrize("video_id", ["视" * 100, "a/../b:c", "x" * 254, "", "con\n.json"])
def test_results_are_kept_whatever_a_video_is_called(tmp_path: Path, video_id: str) -> None:
    record = VideoRecord(video_id, "name", 4, 4, frames=ArrayFrames([]))
    folder = ResultFolder(tmp_path / "videos")
    folder.write(record, json.dumps({"tracks": [{"track_id": 3}]}))
    assert folder.read(record).tracks == [{"track_id": 3}] and folder.missing([record]) == []
    assert [path.parent for path in folder.files()] == [tmp_path / "videos"] == [path for path in tmp_path.iterdir()]


def test_long_names_with_a_common_prefix_have_separate_files(tmp_path: Path) -> None:
    records = [VideoRecord("视" * 100 + end, end, 4, 4, frames=ArrayFrames([])) for end in "ab"]
    assert len({ResultFolder(tmp_path).path(record) for record in records}) == 2


def test_files_not_written_by_an_evaluation_are_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "inference" / VIS / "videos" / "theirs.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    evaluator = build_evaluator(VIS, cfg_for(tmp_path))
    with pytest.raises(UserError, match=r"videos: holds 'theirs\.json', which no evaluation has written"):
        evaluator.reset()
    assert theirs.exists()


def test_an_unwritable_output_folder_is_reported_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "inference").write_text("a file")
    with pytest.raises(UserError, match=r"inference/eval_vis: cannot be written to: "):
        build_evaluator(VIS, cfg_for(tmp_path)).reset()
