# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from ausm_d2.data.augmentation.build import RandomApply, build_augmentations
from ausm_d2.data.augmentation.colour import ColourJitter
from ausm_d2.data.augmentation.geometry import (
    CropScalePath,
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    ResizeShortestEdge,
    SoftWarp,
)
from ausm_d2.data.augmentation.plan import Augmentation, ClipPlan
from ausm_d2.data.augmentation.render import render_frame, render_mask
from ausm_d2.errors import UserError
from tests.data.stubs import small_cfg

SIZE = (90, 140)
GEOMETRY: dict[str, list[Augmentation]] = {
    "nothing": [],
    "flip": [RandomFlip(1.0)],
    "vertical flip": [RandomFlip(1.0, vertical=True)],
    "smaller": [ResizeShortestEdge([61], 500)],
    "much smaller": [ResizeShortestEdge([23], 500)],
    "larger": [ResizeShortestEdge([200], 500)],
    "crop": [RandomCrop("absolute", (50, 70), drift=0.5)],
    "crop and resize": [
        ResizeShortestEdge([120], 500), RandomCrop("relative", (0.5, 0.6), 0.3), ResizeShortestEdge([77], 500),
    ],
    "rotation": [RandomRotation(30)],
    "smaller and rotated": [ResizeShortestEdge([40], 500), RandomRotation(30), RandomFlip(1.0)],
    "pan and zoom": [CropScalePath(0.4)],
    "large-scale jitter": [LargeScaleJitter(96, 0.3, 2.0), RandomRotation()],
    "soft warp": [SoftWarp(0.03)],
    "turned and warped": [RandomRotation(30), SoftWarp(0.03), RandomFlip(1.0)],
    "all": [
        ResizeShortestEdge([70, 100], 500), RandomCrop("absolute_range", (40, 60), 0.2), ResizeShortestEdge([64], 500),
        RandomRotation(), CropScalePath(), RandomFlip(),
    ],
}  # fmt: skip


def make_plan(
    augmentations: list[Augmentation], seed: int = 0, frames: int = 4, size: tuple[int, int] = SIZE
) -> ClipPlan:
    plan = ClipPlan.identity(frames, size)
    rng = np.random.default_rng(seed)
    for augmentation in augmentations:
        augmentation(plan, rng)
    return plan


def blobs(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(size), (0, 0), 6)
    return np.ascontiguousarray(noise > noise.std())


def drawn(mask: object, plan: ClipPlan, t: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    target = np.zeros(plan.size, bool)
    assert render_mask(mask, size, plan, t, target) == target.any()
    return target


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pattern_and_mask_move_together(name: str, seed: int) -> None:
    """The pattern is white inside the mask, so the grey value of a pixel of the result tells whether it is inside."""
    pattern = blobs(seed)
    image = np.repeat(pattern[..., None] * np.uint8(255), 3, axis=2)
    plan = make_plan(GEOMETRY[name], seed)
    rle = mask_util.encode(np.asfortranarray(pattern.view(np.uint8)))
    for t in range(plan.num_frames):
        frame = render_frame(image, plan, t, (0.0, 0.0, 0.0))[..., 0].astype(int)
        assert frame.shape == plan.size
        mask = drawn(pattern, plan, t)
        assert np.array_equal(mask, drawn(rle, plan, t))
        # Both sides are rounded: to 1/32 of a pixel and to whole grey values, and a mask to whole pixels before a warp.
        clear = abs(frame - 127.5) > (8 if plan.warps is None else 120)
        clear[:2] = clear[-2:] = clear[:, :2] = clear[:, -2:] = False  # a resize repeats the border, a mask does not
        assert np.array_equal(mask[clear], frame[clear] > 127)
        assert clear.mean() > (0.6 if plan.warps is None else 0.4)


@pytest.mark.parametrize("name", [name for name in GEOMETRY if "warp" not in name])
def test_pixels_come_from_where_the_matrix_says(name: str) -> None:
    """A warped ramp of coordinates gives the source position of every pixel."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x, y, np.full(SIZE, 255)], axis=2).astype(np.uint8)
    plan = make_plan(GEOMETRY[name])
    for t in range(plan.num_frames):
        frame = render_frame(ramp, plan, t, (0.0, 0.0, 0.0)).astype(float)
        rows, columns = np.mgrid[: plan.size[0], : plan.size[1]]
        points = np.stack([columns + 0.5, rows + 0.5, np.ones(plan.size)])
        source = np.einsum("ij,jhw->ihw", np.linalg.inv(plan.matrices[t]), points)[:2]
        reach = 1 + 1 / np.sqrt(abs(np.linalg.det(plan.matrices[t][:2, :2])))  # border pixels mix with what is outside
        inside = (source > reach).all(axis=0) & (source[0] < width - reach) & (source[1] < height - reach)
        assert (frame[inside][:, 2] == 255).all()
        # Half a grey value of rounding (twice, where the image is shrunk first), and OpenCV's resize cuts off up to a
        # quarter. Half a pixel off would be 1.0 and 1.5.
        limit = 0.8 if reach < 3 else 1.2
        error = abs(frame[..., :2] + 0.5 - source.transpose(1, 2, 0))[inside]
        assert error.max() < limit if error.size else name == "large-scale jitter"


@pytest.mark.parametrize("name", GEOMETRY)
def test_polygons_are_transformed_like_pixels(name: str) -> None:
    outline = np.array([[20.0, 15.0], [110.0, 25.0], [95.0, 70.0], [40.0, 80.0]])
    bitmap = mask_util.decode(mask_util.merge(mask_util.frPyObjects([outline.ravel().tolist()], *SIZE))).view(bool)
    plan = make_plan(GEOMETRY[name])
    for t in range(plan.num_frames):
        polygon, pixels = drawn([outline.ravel().tolist()], plan, t), drawn(bitmap, plan, t)
        # Rasterising before or after moves the edge by up to a stored pixel.
        scale = np.sqrt(abs(np.linalg.det(plan.matrices[t][:2, :2])))
        perimeter = np.linalg.norm(outline - np.roll(outline, 1, axis=0), axis=1).sum() * scale
        assert (polygon ^ pixels).sum() <= perimeter * max(scale, 1.0)


def test_the_identity_plan_copies_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    assert render_frame(image, make_plan([ResizeShortestEdge([90], 500)]), 0, (0.0, 0.0, 0.0)) is image


def test_polygons_as_stored_are_those_of_pycocotools() -> None:
    polygons = [[0.5, 0.0, 139.9, 3.2, 120.0, 89.5, 3.0, 90.0], [5.5, 5.5, 9.0, 5.5, 9.0, 9.25]]
    expected = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *SIZE))).view(bool)
    assert np.array_equal(drawn(polygons, make_plan([]), 0), expected)


def test_flipping_twice_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    plan = make_plan([RandomFlip(1.0), RandomFlip(1.0, vertical=True), RandomFlip(1.0)])
    assert np.array_equal(render_frame(image, plan, 0, (0.0, 0.0, 0.0)), image[::-1])
    assert np.array_equal(drawn(blobs(), plan, 0), blobs()[::-1])


def test_a_size_is_one_per_clip_and_within_bounds() -> None:
    for seed in range(10):
        plan = make_plan([ResizeShortestEdge([40, 60, 200], 150)], seed)
        assert min(plan.size) in (40, 60, round(90 * 150 / 140)) and max(plan.size) <= 150
        assert np.array_equal(plan.matrices, np.broadcast_to(plan.matrices[:1], plan.matrices.shape))
    sizes = {min(make_plan([ResizeShortestEdge([30, 35], 500, "range_by_clip")], seed).size) for seed in range(60)}
    assert sizes == {30, 31, 32, 33, 34, 35}


def test_crop_drifts_evenly_and_stays_inside() -> None:
    moved = 0
    for seed in range(30):
        plan = make_plan([RandomCrop("absolute_range", (30, 50), drift=0.6)], seed, frames=5)
        assert all(30 <= side <= 50 for side in plan.size)
        for axis, full in ((0, SIZE[1]), (1, SIZE[0])):
            starts = -plan.matrices[:, axis, 2]
            assert starts.min() >= 0 and starts.max() + plan.size[1 - axis] <= full
            assert np.array_equal(starts, np.round(starts)) and np.ptp(np.diff(starts)) <= 1
            assert abs(starts[-1] - starts[0]) <= 0.6 * plan.size[1 - axis] + 1
            moved += starts[-1] != starts[0]
    assert moved > 30


def test_a_crop_that_may_slide_anywhere_ends_anywhere() -> None:
    ends = []
    for seed in range(300):
        plan = make_plan([RandomCrop("absolute", (40, 70), drift=2.0)], seed, frames=3)
        ends.append(-plan.matrices[-1, :2, 2] / (SIZE[1] - 70, SIZE[0] - 40))
    shares = np.histogram(np.array(ends)[:, 0], 5, (0.0, 1.0))[0] / len(ends)
    assert abs(shares - 0.2).max() < 0.07


def test_crop_window_larger_than_the_frame_is_the_frame() -> None:
    assert make_plan([RandomCrop("absolute_range", (384, 600))]).size == SIZE
    assert make_plan([RandomCrop("absolute", (384, 50))]).size == (90, 50)


def test_rotation_is_sorted_and_keeps_its_centre() -> None:
    directions = set()
    for seed in range(20):
        plan = make_plan([RandomRotation(15.0)], seed, frames=6)
        angles = np.rad2deg(np.arctan2(plan.matrices[:, 1, 0], plan.matrices[:, 0, 0]))
        assert abs(angles).max() <= 15
        steps = np.diff(angles)
        assert (steps >= 0).all() or (steps <= 0).all()
        directions.add(bool(steps[0] > 0))
        # The one fixed point of a turn is its centre.
        centre = np.linalg.solve(np.eye(2) - plan.matrices[0, :2, :2], plan.matrices[0, :2, 2]) / SIZE[::-1]
        assert (abs(centre - 0.5) <= 0.1).all()
        assert plan.size == SIZE
    assert directions == {True, False}


def test_a_soft_warp_starts_at_rest_moves_smoothly_and_folds_nothing() -> None:
    moved = []
    for seed in range(20):
        plan = make_plan([SoftWarp()], seed, frames=6)
        at_rest, *later = (plan.sources(t) for t in range(6))
        assert at_rest is not None
        columns, rows = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
        assert np.array_equal(at_rest[0], columns) and np.array_equal(at_rest[1], rows)
        for sources in later:
            assert sources is not None
            assert np.diff(sources[0], axis=1).min() > -0.5 and np.diff(sources[1], axis=0).min() > -0.5
            moved.append(max(np.abs(sources[0] - columns).max(), np.abs(sources[1] - rows).max()))
    assert max(moved) > 5 and max(moved) < 40
    assert make_plan([]).sources(0) is None


def test_large_scale_jitter_cuts_or_pads_to_a_square() -> None:
    image = np.full((*SIZE, 3), 255, np.uint8)
    shares = []
    for seed in range(40):
        plan = make_plan([LargeScaleJitter(64, 0.1, 2.0)], seed, frames=1)
        assert plan.size == (64, 64)
        shares.append((render_frame(image, plan, 0, (1.0, 2.0, 3.0))[..., 2] == 255).mean())
    assert min(shares) < 0.1 and max(shares) == 1.0


def test_colour_of_a_clip_is_one_matrix_within_bounds() -> None:
    image = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    values = []
    for seed in range(50):
        plan = make_plan([ColourJitter(("brightness",))], seed, size=(4, 4))
        frames = [render_frame(image, plan, t, (0.0, 0.0, 0.0)) for t in range(4)]
        assert all(np.array_equal(frame, frames[0]) for frame in frames)
        values.append(int(frames[0][0, 0, 1]))
    assert min(values) >= 90 and max(values) <= 110 and np.ptp(values) > 10
    grey = np.full((4, 4, 3), 90, np.uint8)
    saturated = render_frame(
        grey, make_plan([ColourJitter(("saturation",), 2.0, 2.0)], size=(4, 4)), 0, (0.0, 0.0, 0.0)
    )
    assert np.array_equal(saturated, grey)
    plan = make_plan([ColourJitter(("contrast",), 0.5, 0.5, grey=100.0)], size=(4, 4))
    assert render_frame(image, plan, 0, (0.0, 0.0, 0.0))[0, 0].tolist() == [150, 100, 75]


def test_colour_can_go_from_one_value_to_another() -> None:
    plan = make_plan([ColourJitter(("brightness",), drift=True)], frames=5)
    assert plan.colours is not None
    factors = plan.colours[:, 0, 0]
    assert np.allclose(np.diff(factors), factors[1] - factors[0]) and factors[0] != factors[-1]


def test_a_mask_outside_of_the_crop_is_not_visible() -> None:
    mask = np.zeros(SIZE, bool)
    mask[80:, 130:] = True
    plan = make_plan([RandomCrop("absolute", (40, 40))], seed=1)
    plan.matrices[:] = np.eye(3)
    plan.size = (40, 40)
    assert not drawn(mask, plan, 0).any()
    assert not drawn([[130.0, 80.0, 139.0, 80.0, 135.0, 88.0]], plan, 0).any()
    assert not drawn(np.zeros(SIZE, bool), plan, 0).any()
    assert not drawn({"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}, plan, 0).any()


def test_mask_of_another_size_is_an_error() -> None:
    with pytest.raises(UserError, match=r"\(10, 20\)"):
        drawn(np.zeros((10, 20), bool), make_plan([]), 0)
    with pytest.raises(UserError, match=r"\[10, 20\]"):
        drawn({"size": [10, 20], "counts": [200]}, make_plan([]), 0)


def test_chain_of_the_config() -> None:
    cfg = small_cfg(INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="absolute_range", INPUT__CROP__SIZE=[384, 600])
    cfg.INPUT.AUGMENTATIONS = ["rotation", "contrast"]
    cfg.INPUT.RANDOM_FLIP = "flip_by_clip"
    kinds = [type(augmentation) for augmentation in build_augmentations(cfg, pseudo=False)]
    assert kinds == [RandomApply, ResizeShortestEdge, RandomRotation, RandomFlip, ColourJitter]
    cfg.INPUT.LSJ_AUG.ENABLED = True
    kinds = [type(augmentation) for augmentation in build_augmentations(cfg, pseudo=True)]
    assert kinds == [RandomFlip, RandomRotation, LargeScaleJitter]
    cfg.INPUT.PSEUDO.AUGMENTATIONS = ["rotation", "warp"]
    with pytest.raises(UserError, match="LSJ_AUG"):
        build_augmentations(cfg, pseudo=True)


def test_motion_of_a_pseudo_video_does_not_depend_on_the_scale_drawn() -> None:
    """Motion of image points from the first to the last frame, in diagonals of the image at its augmented size."""
    height, width = 480, 640
    y, x = np.mgrid[0.05 * height : 0.95 * height : 9j, 0.05 * width : 0.95 * width : 9j]
    points = np.stack([x.ravel(), y.ravel(), np.ones(81)])
    motion, lost = {}, {}
    for scale in (0.1, 0.4, 1.0, 2.0):
        cfg = small_cfg(INPUT__RANDOM_FLIP="flip_by_clip")
        cfg.INPUT.LSJ_AUG.ENABLED, cfg.INPUT.LSJ_AUG.MIN_SCALE, cfg.INPUT.LSJ_AUG.MAX_SCALE = True, scale, scale
        chain, ways, gone = build_augmentations(cfg, pseudo=True), [], []
        for seed in range(200):
            plan = make_plan(chain, seed, frames=3, size=(height, width))
            assert plan.size == (1024, 1024)
            shown = (plan.matrices @ points)[:, :2]
            ways.append(np.linalg.norm(shown[-1] - shown[0], axis=0) / (scale * np.hypot(1024, 768)))
            gone.append(((shown < 0) | (shown > 1024)).any(axis=(0, 1)).mean())
        motion[scale], lost[scale] = np.array(ways), np.mean(gone)
        assert 0.06 < motion[scale].mean() < 0.09
        assert np.allclose(motion[scale], motion[0.1], rtol=0.02, atol=1e-3)
    assert lost[0.1] < 0.15 and lost[0.4] < 0.15  # turned out of the picture, no more


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RANDOM_FLIP", "diagonal"),
        ("INPUT.CROP.TYPE", "round"),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("INPUT.PSEUDO.AUGMENTATIONS", ["wobble"]),
    ],
)
def test_config_errors_name_the_key(key: str, value: object) -> None:
    cfg = small_cfg(INPUT__CROP__ENABLED=True)
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=key.split(".")[1]):
        build_augmentations(cfg, pseudo="PSEUDO" in key)
