# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import multiprocessing
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ausm_d2.data import build
from ausm_d2.data.build import build_test_loader, build_train_loader
from ausm_d2.data.mixture import DrawnBatches, MixtureSampler, is_portrait
from ausm_d2.data.video import DeferredRecord
from ausm_d2.errors import UserError
from tests.data.stubs import moving_square, register, small_cfg


@pytest.fixture(autouse=True)
def _stub_data() -> None:
    register("stub_a", [moving_square(i) for i in range(5)], label_set="a")
    register("stub_b", [moving_square(i, size=(64, 48)) for i in range(20)], label_set="b")


def test_items_are_what_the_model_expects() -> None:
    batch = next(iter(build_train_loader(small_cfg("stub_a"))))
    assert len(batch) == 2
    for item in batch:
        assert item["image"].dtype == torch.uint8 and item["image"].shape == (4, 3, 48, 64)
        assert item["masks"].dtype == torch.bool and item["masks"].shape == (1, 4, 48, 64)
        assert torch.equal(item["masks"][0], item["image"][:, 0] == 255)
        assert item["classes"].tolist() == [1] and item["classes"].dtype == torch.int64
        assert item["labelled"].tolist() == [True] * 4
        assert (item["label_set"], item["task"], item["exhaustive"]) == ("a", "vis", True)
        assert item["frame_indices"] == sorted(item["frame_indices"])
        assert (item["height"], item["width"]) == (48, 64)


def test_same_seed_same_items_whatever_the_workers() -> None:
    def first(workers: int) -> list[tuple[int, list[int]]]:
        cfg = small_cfg("stub_a", "stub_b", DATALOADER__NUM_WORKERS=workers, DATALOADER__ASPECT_RATIO_GROUPING=False)
        batches = list(islice(build_train_loader(cfg), 6))
        return [(item["video_id"], item["frame_indices"]) for batch in batches for item in batch]

    assert first(0) == first(2)


def test_mixture_has_the_shares_of_the_config_and_logs_them() -> None:
    cfg = small_cfg("stub_a", "stub_b", DATASETS__DATASET_RATIO=[3.0, 1.0])
    with EventStorage() as storage:
        batches = list(islice(build_train_loader(cfg), 300))
        logged = storage.latest()["data/share_of_stub_a"][0]
    label_sets = Counter(item["label_set"] for batch in batches for item in batch)
    assert abs(label_sets["a"] / label_sets.total() - 0.75) < 0.05
    assert logged == label_sets["a"] / label_sets.total()
    assert all(len({item["width"] > item["height"] for item in batch}) == 1 for batch in batches)


def test_no_ratio_means_by_size() -> None:
    sampler = MixtureSampler([5, 20], [5, 20], seed=0)
    drawn = Counter(draw.dataset for draw in islice(sampler, 2000))
    assert abs(drawn[1] / 2000 - 0.8) < 0.03


def test_every_video_comes_once_per_round() -> None:
    draws = list(islice(MixtureSampler([7], [1.0], seed=0), 21))
    for start in (0, 7, 14):
        assert {draw.record for draw in draws[start : start + 7]} == set(range(7))


def test_ranks_share_one_stream_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(islice(MixtureSampler([5, 20], [1, 1], seed=1), 40))
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(islice(MixtureSampler([5, 20], [1, 1], seed=1), 10)))
    assert [draw for together in zip(*parts, strict=True) for draw in together] == whole
    assert len({draw.seed for draw in whole}) == 40


def test_a_resumed_training_continues_with_the_next_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any number of workers and processes: after 5 iterations come the batches of iteration 5, 6, ..."""

    def batches(workers: int, skipped: int, taken: int) -> list[list[tuple[str, int, list[int]]]]:
        keys = {"DATALOADER__NUM_WORKERS": workers, "DATALOADER__ASPECT_RATIO_GROUPING": False}
        loader = build_train_loader(small_cfg("stub_a", "stub_b", SOLVER__IMS_PER_BATCH=4, **keys))
        loader.continue_from(skipped, loader.seed)
        of_items = [
            [(item["dataset_name"], item["video_id"], item["frame_indices"]) for item in batch]
            for batch in islice(loader, taken)
        ]
        return of_items

    whole = batches(0, 0, 8)
    assert len({str(batch) for batch in whole}) == 8
    for workers in (0, 2):
        assert batches(workers, 5, 3) == whole[5:]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(0, 5, 3))
    together = [[parts[i % 2][k][i // 2] for i in range(4)] for k in range(3)]
    assert together == whole[5:]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_draws_of_an_iteration_do_not_depend_on_where_training_starts(grouped: bool) -> None:
    """Also across blocks, and with batches of one shape."""
    portrait = [[False] * 5, [i % 3 == 0 for i in range(20)]] if grouped else None
    batches = DrawnBatches(MixtureSampler([5, 20], [3, 1], seed=2), 3, portrait)
    whole = list(islice(batches, 3000))
    for start in (1, 1365, 1366, 2998):
        batches.start = start
        assert list(islice(batches, 2)) == whole[start : start + 2]
    if portrait is not None:
        assert all(len({portrait[draw.dataset][draw.record] for draw in batch}) == 1 for batch in whole)
        assert any(portrait[batch[0].dataset][batch[0].record] for batch in whole)


def test_the_aspect_ratio_of_a_video_is_used_only_if_known_without_reading() -> None:
    def load() -> dict[str, object]:
        raise AssertionError("opened")

    assert is_portrait(moving_square(0, size=(64, 48))) and not is_portrait(moving_square(0))
    assert not is_portrait(DeferredRecord(load, video_id=1, name="a"))
    assert is_portrait(DeferredRecord(load, video_id=1, name="a", height=3, width=2))


def test_a_loader_draws_nothing_from_the_default_generators() -> None:
    """Otherwise a resumed training, which creates a new loader, would draw different random numbers."""
    before = torch.get_rng_state()
    next(iter(build_train_loader(small_cfg("stub_a", DATALOADER__NUM_WORKERS=1))))
    assert torch.equal(torch.get_rng_state(), before)


def test_unreadable_video_is_replaced_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    register("stub_c", [moving_square(0), moving_square(1, broken=True)])
    ids = {item["video_id"] for batch in islice(build_train_loader(small_cfg("stub_c")), 20) for item in batch}
    assert ids == {0}
    assert "no. 2 of stub_c" in caplog.text and "truncated" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_of_unreadable_videos_is_an_error_of_one_line(workers: int) -> None:
    register("stub_d", [moving_square(1, broken=True)])
    cfg = small_cfg("stub_d", DATALOADER__NUM_WORKERS=workers)
    before = set(multiprocessing.active_children())
    with pytest.raises(
        UserError, match=r"^stub_d: 10 videos in a row cannot be used; the last one: video video1, frame 0000\d: "
    ):
        next(iter(build_train_loader(cfg)))
    assert set(multiprocessing.active_children()) <= before  # not only once the garbage collector comes to it


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        ((), {}, "DATASETS.TRAIN"),
        (("stub_a", "no_such_set"), {}, "no_such_set.*stub_a"),
        (("stub_a", "stub_b"), {"DATASETS__DATASET_RATIO": [1.0]}, "DATASET_RATIO"),
        (("stub_a", "stub_b"), {"DATASETS__DATASET_RATIO": [1.0, -1.0]}, "DATASET_RATIO"),
        (("stub_a",), {"INPUT__SAMPLING_FRAME_RANGES": [3, 4]}, "SAMPLING_FRAME_RANGES"),
        (("stub_a",), {"INPUT__AUGMENTATIONS": ["hue"]}, "hue"),
    ],
)
def test_mistakes_in_the_config(names: tuple[str, ...], keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_train_loader(small_cfg(*names, **keys))


def test_test_loader_splits_videos_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [moving_square(i, length=1 + i) for i in range(7)]
    register("stub_e", records, task="vos")
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    seen, frames = [], []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = build_test_loader(small_cfg(), "stub_e", finished={2})
        batches = list(loader)
        assert len(loader) == len(batches) and all(len(batch) == 1 for batch in batches)
        seen += [batch[0]["record"].video_id for batch in batches]
        frames.append(sum(batch[0]["record"].length for batch in batches))
    assert sorted(seen) == [0, 1, 3, 4, 5, 6]
    assert max(frames) - min(frames) <= 5
    assert batches[0][0]["task"] == "vos" and batches[0][0]["overlap"] is False


def test_test_items_carry_the_topk_of_their_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's 10 and 20, and COCO's 100."""
    wanted = {"ytvis_2019_val": 10, "ytvis_2021_val": 10, "ovis_val": 20, "coco_2017_val": 100, "coco2ovis_val": 100}
    monkeypatch.setattr(build, "get_records", lambda name: [moving_square(0)])
    for name, topk in wanted.items():
        [[item]] = build_test_loader(small_cfg(), name)
        assert item["topk"] == topk


def test_frame_ranges_per_data_set() -> None:
    register("stub_f", [moving_square(0, length=40)])
    register("stub_g", [moving_square(0, length=40)])
    cfg = small_cfg("stub_f", "stub_g", INPUT__SAMPLING_FRAME_RANGES=[2, 15])
    spans: dict[str, list[int]] = {"stub_f": [], "stub_g": []}
    for batch in islice(build_train_loader(cfg), 40):
        for item in batch:
            spans[item["dataset_name"]].append(int(np.ptp(item["frame_indices"])))
    assert max(spans["stub_f"]) <= 4 < max(spans["stub_g"])
