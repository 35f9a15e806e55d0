# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The program on a simulated GPU: all tensors are on the device, and there are no unnecessary device syncs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ausm_d2.config import load_config
from ausm_d2.data.synthvis import SPLITS, SynthVis
from ausm_d2.masks.rle import decode
from ausm_d2.streaming import segmenter
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.segmenter import segment_video
from ausm_d2.streaming.settings import VideoSettings
from tests.pretended_gpu import pretended_gpu
from tests.streaming.test_step import assert_alike, follow
from tests.tiny import ONE_LAYER, clip, tiny_model


def test_the_simulated_gpu_detects_both_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch) as gpu:
        x = torch.arange(4.0).to("cuda:0")
        assert x.device.type == "cuda" and (x + 1.0).is_cuda and gpu.waits == ["a copy"]
        with pytest.raises(RuntimeError, match="both devices"):
            x + torch.ones(4)
        gpu.waits.clear()
        x[torch.tensor([1, 2], device="cuda:0")] += 1
        assert gpu.waits == ["a copy"]
        assert float(x.sum()) == 8 and len(gpu.waits) == 2
        assert x[x > 2].cpu().tolist() == [3.0, 3.0] and len(gpu.waits) == 4
        assert x.to("cpu", non_blocking=True).device.type == "cpu" and len(gpu.waits) == 4
    assert not torch.cuda.is_available()


def losses(device: str, *opts: Any) -> dict[str, float]:
    model = tiny_model(*opts)
    model.to(device)
    torch.manual_seed(1)
    items = [clip(2, 2, seed=1), clip(2, 3, seed=2, label_set="object", exhaustive=False)]
    return {name: float(loss.detach()) for name, loss in model(items).items()}


@pytest.mark.parametrize("mode", ["parallel", "iterative", "rollout"])
def test_training(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = ["MODEL.AUSM.TRAIN.MODE", mode, "MODEL.AUSM.TRAIN.CHECKPOINTING", True]
    opts += ["MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 1, "MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED", True]
    opts += ["MODEL.AUSM.TRAIN.FRAME_CLASS_WEIGHT", 1.0, "MODEL.AUSM.TRAIN.OWN_PASSES", 2 * (mode == "parallel")]
    opts += ONE_LAYER
    wanted = losses("cpu", *opts)
    with pretended_gpu(monkeypatch):
        found = losses("cuda:0", *opts)
        with torch.autocast("cuda", torch.bfloat16):
            half = losses("cuda:0", *opts)
    assert found == pytest.approx(wanted, rel=1e-4) and half == pytest.approx(wanted, rel=0.05)


def test_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = follow("MODEL.DEVICE", "cpu", length=4)
    with pretended_gpu(monkeypatch):
        assert_alike(follow("MODEL.DEVICE", "cuda:0", length=4), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["parallel", "iterative"])
def test_gradients_on_a_real_gpu(mode: str, half: torch.dtype | None) -> None:
    opts = ["MODEL.AUSM.TRAIN.MODE", mode, "MODEL.AUSM.TRAIN.CHECKPOINTING", True]
    model = tiny_model(*opts, "MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 1).to("cuda")
    with torch.autocast("cuda", half, enabled=half is not None):
        losses = model([clip(3, 2, seed=1), clip(3, 3, seed=2, label_set="object")])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) > 100 and all(each.isfinite().all() for each in gradients.values())


def areas(result: dict[str, Any]) -> list[int]:
    """Of the masks of all tracks and frames."""
    tracks = (
        [track["segmentations"] for track in result["tracks"]] if "tracks" in result else result["objects"].values()
    )
    return [int(decode(mask).sum()) for track in tracks for mask in track if mask is not None]


@pytest.mark.parametrize("task", ["vis", "vos", "image"])
def test_whole_videos(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *ONE_LAYER]
    cfg = load_config("configs/synth/ausm_nano.yaml", opts)
    item = {"record": SynthVis(SPLITS["val"][0], 2, 3, complete=True)[1], "task": task, "overlap": False}
    item |= {"dataset_name": "synthvis_val", "topk": 10}
    model, settings, results = build_model(cfg).eval(), VideoSettings.from_config(cfg), []
    item["label_set"] = next(iter(model.label_sets))
    results.append(segment_video(model, item, settings))
    # The pretended GPU exists in this thread only: the frames are encoded in it, too.
    monkeypatch.setattr(segmenter, "encode_ahead", lambda network, settings, frames, **_: iter(frames))
    with pretended_gpu(monkeypatch):
        model.to("cuda:0")
        results.append(segment_video(model, item, settings))
    wanted, found = map(areas, results)
    assert sum(wanted) > 100 and found == pytest.approx(wanted, rel=0.01, abs=2)


@pytest.mark.parametrize("amp", [False, True])
def test_a_frame_waits_for_its_report_and_of_found_objects_for_which_masks_are_empty(
    amp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SynthVis(SPLITS["val"][0], 2, 3, complete=True)[1]
    images = [np.ascontiguousarray(record.frames[t][..., ::-1]) for t in range(3)]
    mask = np.zeros(images[0].shape[:2], bool)
    mask[10:30, 10:30] = True
    with pretended_gpu(monkeypatch) as gpu:
        opts = ["MODEL.DEVICE", "cuda:0", "TEST.AUSM.AMP", amp, "MODEL.WEIGHTS", "", *ONE_LAYER]
        opts += ["TEST.AUSM.FG_THRESHOLD", 0.0, "MODEL.AUSM.PIXEL_DECODER.NUM_DET", 4]  # random weights find 4 objects
        predictor = VideoPredictor(load_config("configs/synth/ausm_nano.yaml", opts))
        for prompts, files in (({1: mask, 5: ~mask}, ["stream.py"]), (None, ["stream.py", "session.py"])):
            session = predictor.start(images[0], prompts)
            session.step(images[1])
            gpu.waits.clear()
            session.step(images[2])
            assert session.result.instances.pred_masks.is_cuda and session.result.instances.scores.is_cuda
            assert [wait.split(" at ")[1].split(":")[0] for wait in gpu.waits] == files, gpu.waits
