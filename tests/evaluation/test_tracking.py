# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trackeval.datasets import YouTubeVIS
from trackeval.metrics import HOTA

from ausm_d2.evaluation import ytvis
from ausm_d2.evaluation.tracking import TrackingScores
from tests.evaluation.cases import random_case


def test_equals_trackeval_and_our_own_ap(tmp_path: Path) -> None:
    truth, results = random_case(np.random.default_rng(5), crowds=False)
    for folder, data in (("gt/youtube_vis_x", truth), ("trackers/youtube_vis_x/us/data", results)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "data.json").write_text(json.dumps(data))
    read = ytvis.read_truth(tmp_path / "gt/youtube_vis_x/data.json")
    tracks = ytvis.read_results(tmp_path / "trackers/youtube_vis_x/us/data/data.json", read)
    assert read.tracks is not None
    scores = TrackingScores(read.categories)
    for video_id in read.videos:
        of_video = [[track for track in side if track.video_id == video_id] for side in (read.tracks, tracks)]
        scores.add(str(video_id), *of_video)
    ours = scores.results()

    data_set = YouTubeVIS(
        {
            "GT_FOLDER": f"{tmp_path}/gt/",
            "TRACKERS_FOLDER": f"{tmp_path}/trackers/",
            "SPLIT_TO_EVAL": "x",
            "PRINT_CONFIG": False,
        }
    )
    metric = HOTA()
    raw = {video: data_set.get_raw_seq_data("us", video) for video in data_set.seq_list}
    by_class = {
        name: metric.combine_sequences(
            {video: metric.eval_sequence(data_set.get_preprocessed_seq_data(raw[video], name)) for video in raw}
        )
        for name in data_set.class_list[:-1]  # the last has no ground truth
    }
    theirs = metric.combine_classes_class_averaged(by_class)
    for name in ("HOTA", "DetA", "AssA"):
        assert ours[name] == pytest.approx(100 * theirs[name].mean(), abs=1e-9)
    assert ours["mAP"] == pytest.approx(ytvis.score(read, tracks)["AP"], abs=1e-9)


def test_without_ground_truth_there_are_no_scores() -> None:
    assert TrackingScores(range(3)).results() == {}
