# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import operator
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vos_benchmark.evaluator import Evaluator

from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation import parallel, vos
from ausm_d2.masks import rle
from ausm_d2.masks.png import read_labels, write_mask_png
from ausm_d2.masks.rle import encode
from tests.data.stubs import ArrayFrames, ListedMasks
from tests.evaluation.cases import rectangle
from tests.new_process import ROOT, run_python


def save(folder: Path, maps: Sequence[np.ndarray]) -> None:
    for frame, ids in enumerate(maps):
        write_mask_png(folder / f"{frame:05d}.png", ids)


def square(left: int, object_id: int = 1) -> np.ndarray:
    """int (10, 10): an object of 4x4 pixels at the given left column."""
    ids = np.zeros((10, 10), int)
    ids[3:7, left : left + 4] = object_id
    return ids


def random_maps(rng: np.random.Generator, objects: int, frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(true, predicted) id maps; every object is in the first true one, later some are hidden."""
    height, width = rng.integers(12, 250, 2)
    truth, predicted = [], []
    for frame in range(frames):
        ids = np.zeros((height, width), int)
        for object_id in range(1, objects + 1):
            if rng.random() < 0.8:
                ids[rectangle(rng, height, width)] = object_id
        if frame == 0:
            ids[0, 1 : objects + 1] = range(1, objects + 1)
        truth.append(ids)
        moved = np.roll(ids, rng.integers(-6, 7), axis=rng.integers(2))
        predicted.append(np.where(moved == rng.integers(1, 9), 0, moved))
    return truth, predicted


def vos_benchmark_scores(
    truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]
) -> dict[int, tuple[float, float]]:
    evaluator = Evaluator()
    for true_ids, ids in zip(truth, predicted, strict=True):
        evaluator.feed_frame(ids, true_ids)
    j, f = evaluator.conclude()
    return {object_id: (j[object_id], f[object_id]) for object_id in j}


def test_a_case_computed_by_hand(tmp_path: Path) -> None:
    """Frame 0 is the prompt. Frame 1 is one column off: J = 12 / 20; its boundary lies within the tolerance of
    ceil(0.008 * sqrt(200)) = 1 pixel: F = 1. In frame 2 nothing is predicted: J = F = 0.
    """
    save(tmp_path / "truth" / "video", [square(2), square(2), square(4)])
    save(tmp_path / "predicted" / "video", [square(5), square(3), square(4, 0)])
    [video] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    assert video == vos.VideoScore("video", {1: pytest.approx((30, 50))})
    assert vos.summary([video]) == pytest.approx({"J&F": 40, "J": 30, "F": 50})
    [video] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted", skip_last_frame=True)
    assert video.objects == {1: pytest.approx((60, 100))}


def test_the_mean_is_over_objects_not_videos() -> None:
    videos = [
        vos.VideoScore("a", {1: vos.ObjectScore(90, 80)}),
        vos.VideoScore("b", {1: vos.ObjectScore(30, 20), 2: vos.ObjectScore(0, 50)}),
    ]
    assert vos.summary(videos) == {"J&F": 45, "J": 40, "F": 50}
    assert vos.summary([]) == {"J&F": None, "J": None, "F": None}


@pytest.mark.parametrize("seed", range(6))
def test_equals_vos_benchmark(tmp_path: Path, seed: int) -> None:
    truth, predicted = random_maps(np.random.default_rng(seed), objects=3, frames=5)
    save(tmp_path / "truth" / "video", truth)
    save(tmp_path / "predicted" / "video", predicted)
    for skip_last_frame, end in ((False, 5), (True, 4)):
        [video] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted", skip_last_frame=skip_last_frame)
        expected = vos_benchmark_scores(truth[1:end], predicted[1:end])
        assert video.objects == {object_id: pytest.approx(scores, abs=1e-9) for object_id, scores in expected.items()}


def test_a_late_object_counts_from_the_frame_after_its_first(tmp_path: Path) -> None:
    both = square(0) + square(6, 2)
    save(tmp_path / "truth" / "video", [square(0), square(0), both, both, square(0)])
    # Object 2 is missed at its prompt (which does not count), half found in frame 3, and rightly gone in frame 4.
    half = square(0) + square(6, 2) * (np.arange(10) < 8)
    save(tmp_path / "predicted" / "video", [square(0), square(0), square(0), half, square(0)])
    [video] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    assert video.objects[1].j == 100
    assert video.objects[2].j == pytest.approx((50 + 100) / 2)


def test_a_record_and_its_files_score_the_same(tmp_path: Path) -> None:
    truth, predicted = random_maps(np.random.default_rng(7), objects=2, frames=6)
    truth[0][truth[0] == 2] = 0
    truth[1][0, 0] = 2  # a late object
    save(tmp_path / "truth" / "video", truth)
    save(tmp_path / "predicted" / "video", predicted)
    [expected] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    height, width = truth[0].shape
    record = VideoRecord(
        video_id="x",
        name="video",
        height=height,
        width=width,
        frames=ArrayFrames([np.zeros((height, width, 3), np.uint8)] * 6),
        instances=[Instance(1, 0), Instance(2, 0)],
        masks=ListedMasks({i: [ids == i if (ids == i).any() else None for ids in truth] for i in (1, 2)}),
        prompt_frames={1: 0, 2: 1},
    )
    results = {i: [encode(ids == i) if (ids == i).any() else None for ids in predicted] for i in (1, 2)}
    assert vos.score_record(record, results) == expected
    with pytest.raises(UserError, match="video video: no result for object 2"):
        vos.score_record(record, {1: results[1]})


def test_masks_of_images_are_compared_without_rle(monkeypatch: pytest.MonkeyPatch) -> None:
    record = VideoRecord(
        video_id=0,
        name="video",
        height=10,
        width=10,
        frames=ArrayFrames([np.zeros((10, 10, 3), np.uint8)] * 2),
        masks=ListedMasks({1: [square(2) == 1] * 2}),
        prompt_frames={1: 0},
    )
    results = {1: [None, encode(square(3))]}
    expected = vos.score_record(record, results)
    assert expected.objects == {1: pytest.approx((60, 100))}
    monkeypatch.setattr(rle, "encode", None)
    assert vos.score_record(record, results) == expected


def test_frames_that_are_scored() -> None:
    record = VideoRecord(0, "video", 1, 1, ArrayFrames([np.zeros((1, 1, 3), np.uint8)] * 6), masks=ListedMasks({}))
    assert vos.scored_frames(record) == []  # no prompt
    record.prompt_frames = {1: 1, 2: 3}
    assert vos.scored_frames(record) == [2, 3, 4, 5]
    record.labelled = [True, True, False, True, False, True]
    assert vos.scored_frames(record) == [3, 5]
    record.labelled = [False, True, False, True, False, False]  # as in YouTube-VOS without public labels: prompts only
    assert vos.scored_frames(record) == []


def test_a_frame_with_a_prompt_is_scored_for_the_other_objects() -> None:
    """Object 2 is prompted in the last labelled frame; object 1 is scored in it."""
    one, two = square(2) == 1, square(6) == 1
    masks = {1: [one, None, None, one, None], 2: [None, None, None, two, None]}
    record = VideoRecord(
        video_id=0,
        name="video",
        height=10,
        width=10,
        frames=ArrayFrames([np.zeros((10, 10, 3), np.uint8)] * 5),
        masks=ListedMasks(masks),
        labelled=[True, False, False, True, False],
        prompt_frames={1: 0, 2: 3},
    )
    assert vos.scored_frames(record) == [3]
    results = {1: [None] * 3 + [encode(square(3) == 1), None], 2: [None] * 5}
    assert vos.score_record(record, results).objects == {1: pytest.approx((60, 100))}
    # As YouTube-VOS has it without public labels: others are asked for, or the late prompt shows its object alone.
    record.extra["scored_frames"] = [0, 1, 3]
    assert vos.scored_frames(record) == []
    del record.extra["scored_frames"]
    masks[1][3] = None
    assert vos.scored_frames(record) == []


def test_folders_of_objects_that_overlap(tmp_path: Path) -> None:
    """SA-V: object 0 is a valid object, and a frame without its file is not scored for it."""
    for side, left in (("truth", 2), ("predicted", 3)):
        for object_id, frames in (("000", (0, 4, 8)), ("001", (4, 8, 12))):
            for frame in frames:
                write_mask_png(tmp_path / side / "video" / object_id / f"{frame:05d}.png", square(left))
    [video] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    assert video.objects == {0: pytest.approx((60, 100)), 1: pytest.approx((60, 100))}


def test_black_and_white_masks_show_object_1_and_else_255_is_void(tmp_path: Path) -> None:
    white = [square(2, 255), square(2, 255)]
    for side in ("truth", "predicted"):
        for frame, ids in enumerate(white):
            (tmp_path / side / "one").mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids.astype(np.uint8)).save(tmp_path / side / "one" / f"{frame}.png")
    with_void = square(2)
    with_void[0] = 255
    for side, ids in (("truth", with_void), ("predicted", square(2))):
        for frame in range(2):
            (tmp_path / side / "two").mkdir(exist_ok=True)
            Image.fromarray(ids.astype(np.uint8)).save(tmp_path / side / "two" / f"{frame}.png")
    videos = vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    assert [video.objects for video in videos] == [{1: (100, 100)}] * 2


def test_seen_and_unseen() -> None:
    videos = [
        vos.VideoScore("a", {1: vos.ObjectScore(80, 60), 2: vos.ObjectScore(40, 20)}),
        vos.VideoScore("b", {1: vos.ObjectScore(60, 20)}),
    ]
    scores = vos.seen_and_unseen(videos, {("a", 1): True, ("a", 2): False, ("b", 1): True})
    assert scores == {"G": (70 + 40 + 40 + 20) / 4, "J_seen": 70, "F_seen": 40, "J_unseen": 40, "F_unseen": 20}
    assert vos.seen_and_unseen(videos[1:], {("b", 1): True}) == {"J_seen": 60, "F_seen": 20}


def test_scores_do_not_depend_on_the_number_of_processes() -> None:
    jobs = list(range(7))
    assert parallel.in_parallel(operator.neg, jobs, workers=2, label="", patience=0) == [-job for job in jobs]
    assert parallel.in_parallel(operator.neg, jobs, workers=0, label="") == [-job for job in jobs]


def test_missing_files_are_named(tmp_path: Path) -> None:
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    with pytest.raises(UserError, match="truth: no such folder"):
        vos.score_folders(truth, predicted)
    save(truth / "video", [square(2)] * 3)
    save(predicted / "video", [square(2)] * 2)
    with pytest.raises(
        UserError, match=r"1 predicted masks are missing, the first of them .*predicted/video/00002\.png"
    ):
        vos.score_folders(truth, predicted)
    write_mask_png(predicted / "video" / "00002.png", square(2)[:, :9])
    with pytest.raises(UserError, match=r"00002\.png: 9x10 pixels, expected 10x10"):
        vos.score_folders(truth, predicted)
    Image.new("RGB", (10, 10), "red").save(predicted / "video" / "00002.png")
    with pytest.raises(UserError, match=r"00002\.png: a picture in colours"):
        vos.score_folders(truth, predicted)
    (predicted / "video" / "00002.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"00002\.png: the mask cannot be decoded"):
        vos.score_folders(truth, predicted)
    (truth / "empty").mkdir()
    with pytest.raises(UserError, match="truth/empty: no masks"):
        vos.score_folders(truth, predicted)


def test_the_command(new_processes: ForkServerContext, tmp_path: Path) -> None:
    save(tmp_path / "DAVIS" / "Annotations" / "480p" / "video", [square(2), square(2), square(4)])
    save(tmp_path / "predicted" / "video", [square(5), square(3), square(4, 0)])
    command = ["-m", "ausm_d2.evaluation.vos", str(tmp_path / "DAVIS"), str(tmp_path / "predicted")]
    command += ["--json", str(tmp_path / "out.json")]
    assert run_python(new_processes, command, tmp_path, cwd=ROOT).returncode == 0
    scores = json.loads((tmp_path / "out.json").read_text())
    assert scores == {
        "J&F": pytest.approx(40),
        "J": pytest.approx(30),
        "F": pytest.approx(50),
        "per_video": {
            "video": {
                "J&F": pytest.approx(40),
                "J": pytest.approx(30),
                "F": pytest.approx(50),
                "objects": {"1": {"J": pytest.approx(30), "F": pytest.approx(50)}},
            }
        },
    }
    (tmp_path / "predicted" / "video" / "00001.png").unlink()
    done = run_python(new_processes, command, tmp_path, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_real_masks(shared_data: Path) -> None:
    """A DAVIS sequence against itself, and against its copied first mask, whose J is known."""
    truth = shared_data / "davis_dev" / "Annotations" / "480p" / "blackswan"
    frames = sorted(truth.glob("*.png"))[:6]
    evaluator = vos.ObjectEvaluator()
    first = read_labels(frames[0]) == 1
    for frame in frames[1:]:
        evaluator.feed(first, read_labels(frame) == 1)
    expected = vos_benchmark_scores([read_labels(frame) for frame in frames[1:]], [first.astype(int)] * 5)
    assert evaluator.score() == pytest.approx(expected[1], abs=1e-9)


def test_frames_without_leading_zeros_score_the_same(tmp_path: Path) -> None:
    """In lexicographic order frame 10 would precede frame 2, and other masks would be the first and the last."""
    truth = [square(min(t, 5), 1 if t else 2) + (square(6, 3) if t > 8 else 0) for t in range(12)]
    predicted = [np.roll(ids, 1, axis=1) if t % 3 else ids for t, ids in enumerate(truth)]
    for names in ("{:05d}", "{}", "frame_{}"):
        for side, maps in (("truth", truth), ("predicted", predicted)):
            for t, ids in enumerate(maps):
                write_mask_png(tmp_path / names / side / "video" / f"{names.format(t)}.png", ids)
    padded, *others = (
        vos.score_folders(tmp_path / names / "truth", tmp_path / names / "predicted", skip_last_frame=True)
        for names in ("{:05d}", "{}", "frame_{}")
    )
    assert others == [padded, padded]


def test_masks_that_match_no_frame_or_two_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "truth/video", [square(2)] * 3)
    for t in range(1, 4):
        write_mask_png(tmp_path / f"predicted/video/{t:05d}.png", square(2))
    with pytest.raises(UserError, match=r"predicted/video: masks are numbered from '00001\.png'.*shifted by 1"):
        vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    save(tmp_path / "good/video", [square(2)] * 3)
    save(tmp_path / "good/another", [square(2)])
    vos.score_folders(tmp_path / "truth", tmp_path / "good")
    assert "good: 1 videos are not in the ground truth (such as 'another')" in caplog.text
    write_mask_png(tmp_path / "objects/video/first/00000.png", square(2))
    with pytest.raises(UserError, match=r"objects/video: expected <frame>\.png, or folders of one object each named"):
        vos.score_folders(tmp_path / "objects", tmp_path / "good")
    write_mask_png(tmp_path / "truth/video/2.png", square(2))
    with pytest.raises(UserError, match=r"truth/video: two masks for one frame, '00002\.png' and '2\.png'"):
        vos.score_folders(tmp_path / "truth", tmp_path / "good")


def test_white_is_void_or_an_object_by_the_whole_video(tmp_path: Path) -> None:
    """The object leaves, and only void remains: this is not a second object."""
    void = np.where(np.arange(10) > 7, 255, 0) * np.ones((10, 1), int)
    for side in ("truth", "predicted"):
        for t, ids in enumerate([np.where(void, 255, square(2)), np.where(void, 255, square(3)), void]):
            picture = Image.fromarray(ids.astype(np.uint8))
            (tmp_path / side / "video").mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / side / "video" / f"{t:05d}.png")
    [video] = vos.score_folders(tmp_path / "truth", tmp_path / "predicted")
    assert video.objects == {1: vos.ObjectScore(100, 100)}


def test_names_with_commas_stay_one_cell(tmp_path: Path) -> None:
    vos.write_table(tmp_path / "a.csv", [vos.VideoScore('a,"b"', {1: vos.ObjectScore(1, 3)})])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ['a,"b"', "1", "2.0000", "1.0000", "3.0000"]
