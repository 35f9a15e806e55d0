# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The part of a step that runs on the device: no device sync, can be captured, and CPU and CUDA agree."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ausm_d2.config import load_config
from ausm_d2.data.synthvis import SPLITS, SynthVis
from ausm_d2.modeling.precision import keep_weights_in
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.slots import FREE
from ausm_d2.streaming.state import StreamState
from ausm_d2.streaming.step import FrameStep, rows_in_use
from tests.streaming.opened import box, frames, open_stream
from tests.tiny import tiny_model
from tools.experiments import object_vectors as object_vectors  # registers AUSMObjectVectors

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class _Crossings(TorchDispatchMode):
    """Records operations that mix device and CPU tensors: on CUDA they would be copies with a device sync."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        outputs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        if any(each.is_meta for each in [*inputs, *outputs]) and not all(each.is_meta for each in inputs):
            self.names.append(str(func))
        return out


@pytest.mark.parametrize(("layers", "meta_arch"), [(0, "AUSM"), (1, "AUSM"), (0, "AUSMObjectVectors")])
def test_a_step_has_no_device_sync_and_no_data_dependent_shapes(layers: int, meta_arch: str) -> None:
    # The device "meta" has no values: whatever would read one (item, nonzero, a mask as an index) raises on it.
    model = tiny_model("MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", layers, "MODEL.AUSM.SPATIAL_REDUCTION", 2,
                       "MODEL.META_ARCHITECTURE", meta_arch).eval()  # fmt: skip
    model.to("meta")
    step = FrameStep(model, "synthvis", cuda_graph=False)
    state = open_stream(model, fg_threshold=0.5)._initial((64, 96), (64, 96))
    arguments = torch.empty(3, 64, 96, dtype=torch.uint8, device="meta"), state.slots.ids.to("meta"), state
    with torch.no_grad():
        step.run(*arguments)  # the first frame may make what is kept
        with _Crossings() as crossings:
            output = step.run(*arguments)
    assert output.report.shape == (8 + 6, 6 + 1) and output.mask_logits.shape == (8 + 6, 16, 24)
    assert crossings.names == []


def test_unused_trailing_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images, outputs = frames(4), []
    for few in (1, 100):
        monkeypatch.setattr("ausm_d2.streaming.step._ROWS", few)
        stream = open_stream(tiny_model().eval(), fg_threshold=0.5)
        prompt = box(top=10, left=20, bottom=30, right=50)
        outputs.append([stream.step(image, {1: prompt} if t == 1 else None) for t, image in enumerate(images)])
    for one, other in zip(*outputs, strict=True):
        assert one.track_ids == other.track_ids
        for name in ("probabilities", "mean_probabilities", "mask_logits"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4)


def test_the_number_of_rows_covers_all_slots_in_use() -> None:
    ids = torch.full((40,), FREE)
    counts = [rows_in_use(ids)]
    for slot in (0, 15, 3, 16, 39):
        ids[slot] = slot
        counts.append(rows_in_use(ids))
    assert counts == [16, 16, 16, 16, 32, 40]


@pytest.mark.parametrize("meta_arch", ["AUSM", "AUSMObjectVectors"])
def test_a_step_overwrites_the_state_in_place(meta_arch: str) -> None:
    model = tiny_model("MODEL.META_ARCHITECTURE", meta_arch).eval()
    stream = open_stream(model, fg_threshold=0.0)
    places = []
    for image in frames(4):
        stream.step(image)
        assert stream.state is not None
        places.append({name: each.data_ptr() for name, each in stream.state.tensors().items()})
    assert places[0] == places[3]


class _Recorded:
    """Replaces ``torch.cuda.graph``: capture and replay both run the step."""

    captures = 0

    def __init__(self, step: FrameStep, image: Tensor, state: StreamState) -> None:
        type(self).captures += 1
        self.step, self.state = step, state

    def replay(self, image: Tensor, ids: Tensor) -> Any:
        return self.step.run(image, ids, self.state)


def test_a_cuda_graph_is_bound_to_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ausm_d2.streaming.step._Graph", _Recorded)
    monkeypatch.setattr(_Recorded, "captures", 0)
    model = tiny_model().eval()
    stream = open_stream(model, fg_threshold=0.5)
    stream._frame_step._capturing = True
    captures = []
    for t, image in enumerate(frames(6)):
        if t == 3:
            assert stream.state is not None
            saved = stream.state.state_dict()
            stream.state = stream._initial(stream.state.size, stream.state.input_size)
            stream.state.load_state_dict(saved)
        stream.step(image)
        captures.append(_Recorded.captures)
    assert captures == [0, 1, 1, 1, 2, 2]
    assert not FrameStep(model, "synthvis", cuda_graph=True)._capturing  # on CUDA only


def test_with_amp_the_convolution_cache_is_bfloat16_and_the_ssm_state_float32() -> None:
    stream = open_stream(tiny_model().eval(), fg_threshold=0.5, amp=True)
    for image in frames(2):
        output = stream.step(image)
    assert stream.state is not None
    for caches in stream.state.memory.ssm:
        assert (caches.conv.dtype, caches.ssm.dtype) == (torch.bfloat16, torch.float32)
    assert output.mask_logits.isfinite().all()


def test_converting_weights_in_advance_does_not_change_the_result() -> None:
    outputs = []
    for converted in (False, True):
        model = tiny_model().eval()
        if converted:
            keep_weights_in(model, torch.bfloat16, norms=False)
        stream = open_stream(model, fg_threshold=0.0, amp=True)
        outputs.append([stream.step(image) for image in frames(3)])
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one.mask_logits, other.mask_logits)
        assert torch.equal(one.probabilities, other.probabilities)


def test_features_between_norms_are_in_half_precision() -> None:
    """Weights converted as for CUDA, on a CPU: every feature is bfloat16, and masks equal those of float32."""
    outputs, dtypes = [], set()
    for half in (False, True):
        model = tiny_model().eval()
        if half:
            keep_weights_in(model, torch.bfloat16, norms=True)
            for module in (model.frame_encoder, model.compressor, model.decoder):
                module.register_forward_hook(lambda module, inputs, out: dtypes.update(_dtypes(out)))
        stream = open_stream(model, fg_threshold=0.0, amp=half)
        outputs.append([stream.step(image) for image in frames(3)])
    assert dtypes == {torch.bfloat16}
    for one, other in zip(*outputs, strict=True):
        error = (one.mask_logits - other.mask_logits.float()).abs().mean()
        assert 0 < error < 0.1 * one.mask_logits.abs().mean()


def _dtypes(features: Any) -> set[torch.dtype]:
    """Types of feature maps, without states."""
    tensors = [each for each in tree_leaves(tuple(features)) if isinstance(each, Tensor)]
    return {each.dtype for each in tensors if each.ndim == 4 or each.ndim == 5}


def follow(*opts: Any, length: int = 8) -> list[Tensor]:
    """The masks (N, H, W) of every frame of a short prompted video, with the trained weights."""
    record = SynthVis(SPLITS["val"][0], 2, length, complete=True)[1]
    images = [np.ascontiguousarray(record.frames[t][..., ::-1]) for t in range(record.length)]
    session = VideoPredictor(load_config("configs/synth/ausm_nano.yaml", opts)).start(images[0], record.prompts()[0])
    results = [session.result, *(session.step(image) for image in images[1:])]
    return [result.instances.pred_masks.cpu() for result in results]


def assert_alike(one: list[Tensor], other: list[Tensor]) -> None:
    for t, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        assert len(mine) == len(theirs) > 0
        union = (mine | theirs).sum((1, 2))
        iou = torch.where(union > 0, (mine & theirs).sum((1, 2)) / union.clamp(min=1), 1.0)
        assert iou.min() >= 0.99, (t, iou)


def test_the_comparison_below_can_fail() -> None:
    masks = torch.rand(4, 2, 20, 20) > 0.3
    off = masks.clone()
    off[3, 1, :2] ^= True
    assert_alike([*masks], [*masks])
    with pytest.raises(AssertionError):
        assert_alike([*masks], [*off])


@needs_gpu
def test_cpu_and_cuda_give_the_same_masks() -> None:
    assert_alike(follow("MODEL.DEVICE", "cpu"), follow("MODEL.DEVICE", "cuda"))


@needs_gpu
def test_a_captured_step_gives_the_same_masks() -> None:
    assert_alike(follow("MODEL.DEVICE", "cuda"), follow("MODEL.DEVICE", "cuda", "TEST.AUSM.CUDA_GRAPH", True))


@needs_gpu
def test_bfloat16_can_be_captured() -> None:
    assert all(map(len, follow("MODEL.DEVICE", "cuda", "TEST.AUSM.CUDA_GRAPH", True, "TEST.AUSM.AMP", True)))


@needs_gpu
def test_a_frame_waits_for_the_device_once() -> None:
    stream = open_stream(tiny_model().eval().to("cuda"), fg_threshold=0.0)
    images = frames(3)
    for image in images[:2]:
        stream.step(image)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            stream.step(images[2])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in waits if "synchroniz" in str(each.message)]) == 1
