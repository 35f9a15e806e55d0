# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Properties of masks of any shape, on inputs that Hypothesis makes up."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ausm_d2.masks import rle
from ausm_d2.modeling.masks import masks_at_stride4, upsample_logits, without_overlaps
from tests.tiny import clip, tiny_model

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
seeds = st.integers(0, 2**31 - 1)
shares = st.sampled_from([0.0, 0.004, 0.1, 0.5, 1.0])


@few
@given(seeds, shares, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_a_mask_at_stride_4_is_empty_only_if_the_mask_is(seed: int, share: float, n: int, h: int, w: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, 4 * h, 4 * w, generator=rng) < share
    cells = masks_at_stride4(masks)
    assert cells.shape == (n, h, w) and set(cells.unique().tolist()) <= {0.0, 1.0}
    covered = masks.view(n, h, 4, w, 4).sum(dim=(2, 4))
    assert torch.equal(cells.flatten(1).any(dim=1), masks.flatten(1).any(dim=1))
    assert (cells[covered >= 8] == 1).all() and not cells[covered == 0].any()
    for mask, area in zip(cells, covered, strict=True):
        if area.max() < 8:
            assert torch.equal(mask > 0, (area == area.max()) & (area > 0))


@few
@given(seeds, st.integers(0, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 17), st.integers(1, 17))
def test_logits_at_frame_size_stay_within_their_range(
    seed: int, rows: int, h: int, w: int, up: int, across: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, h, w, generator=rng)
    # The input ends anywhere in the last cell of stride 4; the frame has any size.
    size = (4 * h - int(torch.randint(4, (), generator=rng)), 4 * w - int(torch.randint(4, (), generator=rng)))
    out = upsample_logits(logits, size, (up, across))
    assert out.shape == (rows, up, across)
    if rows:
        low, high = logits.flatten(1).min(dim=1).values, logits.flatten(1).max(dim=1).values
        assert (out.flatten(1).min(dim=1).values >= low - 1e-5).all()
        assert (out.flatten(1).max(dim=1).values <= high + 1e-5).all()
    apart = without_overlaps(out)
    assert (apart.sum(dim=0) == (out > 0).any(dim=0)).all(), "every covered pixel has one row"
    assert not (apart & (out <= 0)).any()


@few
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_uncompressed_run_lengths_are_the_mask_too(mask: np.ndarray) -> None:
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    found = rle.to_rle({"size": list(mask.shape), "counts": counts}, *mask.shape)
    assert found is not None and np.array_equal(rle.decode(found), mask)
    assert rle.to_rle({"size": [float(side) for side in mask.shape], "counts": counts}, *mask.shape) == found


@settings(few, max_examples=4)
@given(seeds, st.sampled_from([0, 1, 8]), st.integers(1, 3), st.booleans())
def test_training_is_finite_for_any_masks(seed: int, instances: int, frames: int, prompted: bool) -> None:
    """No object, as many as ID vectors, masks that are empty, full or one pixel; features of 1 x 1 at stride 32."""
    rng = torch.Generator().manual_seed(seed)
    model = tiny_model("MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED", True)
    item = clip(frames, instances, seed=seed % 100)
    size = (32, 32)
    masks = torch.zeros(instances, frames, *size, dtype=torch.bool)
    for row in range(instances):
        for t in range(frames):
            kind = int(torch.randint(4, (), generator=rng))
            if kind == 1:
                masks[row, t] = True
            elif kind == 2:
                masks[row, t, int(torch.randint(32, (), generator=rng)), 31] = True
            elif kind == 3:
                masks[row, t] = torch.rand(size, generator=rng) < 0.5
    image = torch.randint(0, 256, (frames, 3, *size), generator=rng, dtype=torch.uint8)
    item |= {"image": image, "masks": masks, "prompted": prompted, "height": 32, "width": 32}
    losses = model([item])
    assert losses and all(loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())
