# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""GPU operations of a step, checked without a GPU: its tensors are fake CUDA tensors without values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ausm_d2.config import load_config
from ausm_d2.kernels import cached_tensors
from ausm_d2.kernels.conv.triton import TritonConv
from ausm_d2.kernels.deformable import triton as deformable
from ausm_d2.kernels.scan.triton import TritonScan
from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.precision import keep_weights_in
from ausm_d2.streaming.step import FrameStep
from tests.pretended_gpu import skip_unless_it_can_be_pretended
from tests.streaming.opened import open_stream

pytest.importorskip("triton")

HEIGHT, WIDTH = 256, 384


class _Launches(TorchDispatchMode):
    """Records operations that launch kernels: all but views and empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.float32: list[tuple[str, int]] = []  # what writes it, and how many

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
        if not views and not any(word in str(func) for word in ("prim.", "empty", "detach", "_unsafe_view")):
            self.note(str(func), *(each for each in tree_leaves(out) if isinstance(each, Tensor)))
        return out

    def note(self, name: str, *outputs: Tensor) -> None:
        self.names.append(name)
        self.float32 += [(name, each.numel()) for each in outputs if each.dtype == torch.float32]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Launches]:
    """Fake CUDA tensors under autocast; custom kernels count as one launch each."""
    skip_unless_it_can_be_pretended()
    noted = _Launches()

    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        noted.note("attention")
        return torch.empty_like(q.transpose(1, 2)).transpose(1, 2).to(v.dtype)

    def scan(self: Any, inputs: Any, last: Tensor) -> Tensor:
        noted.note("scan")
        return torch.empty_like(inputs[0])

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(deformable, "_launch", lambda kernel, tensors: noted.note("deformable", tensors[-1]))
    monkeypatch.setattr(TritonScan, "forward", scan)
    monkeypatch.setattr(TritonConv, "forward", scan)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield noted
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
        cached_tensors.clear()


@torch.no_grad()
def run_step(model: AUSM, launches: _Launches) -> Tensor:
    """The second step of a stream, in bfloat16."""
    label_set = next(iter(model.label_sets))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.eval().to("cuda")
        keep_weights_in(model, torch.bfloat16, norms=True)
        state = open_stream(model, label_set=label_set)._initial((HEIGHT, WIDTH), (HEIGHT, WIDTH))
        step = FrameStep(model, label_set, cuda_graph=False)
        arguments = torch.empty(3, HEIGHT, WIDTH, dtype=torch.uint8, device="cuda"), state.slots.ids.to("cuda"), state
        step.run(*arguments)  # the first frame may make what is kept
        launches.names.clear()
        launches.float32.clear()
        with launches:
            return step.run(*arguments).mask_logits


def test_large_features_stay_in_half_precision(launches: _Launches) -> None:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    model = build_model(load_config("configs/paper/stage3_long_swin_t.yaml", opts))
    logits = run_step(model, launches)
    assert logits.dtype == torch.bfloat16
    features = HEIGHT // 8 * (WIDTH // 8) * model.x_start.numel()
    large = Counter(name for name, numbers in launches.float32 if numbers >= features)
    # Only X_t, as a state, and group norms with what they read are in float32.
    norms = large["aten.native_group_norm.default"]
    assert large == {"aten.copy_.default": 1, "aten.native_group_norm.default": norms, "aten._to_copy.default": norms}
    assert launches.names.count("deformable") == 6 and launches.names.count("scan") == 2 * 6
    # On small frames a launch is what a kernel costs.
    assert len(launches.names) < 950, len(launches.names)
