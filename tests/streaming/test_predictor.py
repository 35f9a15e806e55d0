# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import decode
from ausm_d2.streaming.predictor import FrameResult, VideoPredictor
from ausm_d2.streaming.segmenter import segment_video
from ausm_d2.streaming.session import as_rgb
from tests.data.stubs import ArrayFrames, ListedMasks
from tests.new_process import call
from tests.streaming.opened import open_stream
from tests.tiny import tiny_cfg, tiny_model

SIZE = (50, 70)


@pytest.fixture(scope="module")
def predictor() -> VideoPredictor:
    torch.manual_seed(0)
    return VideoPredictor(tiny_cfg())


def noise(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def box(x: int, y: int, side: int = 20) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def assert_same(one: FrameResult, other: FrameResult) -> None:
    """Bit for bit."""
    assert one.frame_index == other.frame_index and torch.equal(one.id_map, other.id_map)
    a, b = one.instances.get_fields(), other.instances.get_fields()
    assert a.keys() == b.keys() == {"pred_masks", "scores", "pred_classes", "track_ids"}
    assert all(torch.equal(a[name], b[name]) for name in a)


def ids(result: FrameResult) -> list[int]:
    return result.instances.track_ids.tolist()


def masks(result: FrameResult) -> dict[int, np.ndarray]:
    return dict(zip(ids(result), result.instances.pred_masks.numpy(), strict=True))


# ------------------------------------------------------------------------------------------------------ what comes out


def test_results_of_an_unprompted_stream(predictor: VideoPredictor) -> None:
    results = list(predictor.stream(noise(3)))
    assert [result.frame_index for result in results] == [0, 1, 2]
    for result in results:
        rows = len(result.instances)
        assert 0 < rows <= predictor.settings.topk and result.instances.image_size == SIZE
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in result.instances.get_fields().items()}
        assert shapes == {
            "pred_masks": (torch.bool, (rows, *SIZE)),
            "scores": (torch.float32, (rows,)),
            "pred_classes": (torch.int64, (rows,)),
            "track_ids": (torch.int64, (rows,)),
        }
        assert result.instances.pred_masks.flatten(1).any(1).all()
        assert len(set(ids(result))) == rows and min(ids(result)) >= 1
        covered = result.instances.pred_masks.any(0)
        assert result.id_map.shape == SIZE and torch.equal(result.id_map > 0, covered)
        for track_id, mask in masks(result).items():
            assert mask[result.id_map.numpy() == track_id].all()


def test_a_result_is_yielded_before_the_next_frame_is_requested(predictor: VideoPredictor) -> None:
    read = []

    def frames() -> Iterator[np.ndarray]:
        for i, frame in enumerate(noise(3)):
            read.append(i)
            yield frame

    for result in predictor.stream(frames()):
        assert read[-1] == result.frame_index == len(read) - 1
    assert read == [0, 1, 2]
    assert list(predictor.stream([])) == []


def test_frames_are_bgr_and_the_model_gets_what_it_was_trained_on(predictor: VideoPredictor) -> None:
    frames = noise(2)
    stream = open_stream(predictor.model)
    for frame, result in zip(frames, predictor.stream(frames), strict=True):
        output = stream.step(frame[..., ::-1])
        for track_id, score in zip(ids(result), result.instances.scores, strict=True):
            row = output.track_ids.index(track_id)
            assert output.mean_probabilities[row].amax().item() == pytest.approx(score.item(), rel=1e-5)
    assert np.array_equal(as_rgb(frames[0]), frames[0][..., ::-1])


def test_prompted_results_list_every_object_under_the_users_id(predictor: VideoPredictor) -> None:
    frames, thin = noise(4), np.eye(*SIZE, dtype=np.uint8)
    session = predictor.start(frames[0], {700: box(3, 4), 2: thin, 50: torch.from_numpy(box(40, 20))})
    given = {700: box(3, 4), 2: thin > 0, 50: box(40, 20)}
    assert session.result.frame_index == 0 and session.result.instances.scores.tolist() == [1.0, 1.0, 1.0]
    for object_id, mask in masks(session.result).items():
        assert np.array_equal(mask, given[object_id])  # exactly, overlaps included
    assert (session.result.id_map.numpy()[given[700]] == 700).all()
    for frame in frames[1:]:
        result = session.step(frame)
        assert result is session.result and ids(result) == [700, 2, 50]
        assert ((result.instances.scores >= 0) & (result.instances.scores <= 1)).all()
    assert session.result.frame_index == 3 and session.label_set == "object" and session.track_ids == [700, 2, 50]


def test_a_session_has_the_masks_of_the_evaluation(predictor: VideoPredictor) -> None:
    """BGR frames, and a late object added after its frame: masks equal those of the evaluation, pixel for pixel."""
    frames, given = noise(4), {7: (0, box(3, 4)), 9: (0, box(30, 20)), 4: (2, box(20, 10))}
    record = VideoRecord(
        video_id=1,
        name="v",
        height=SIZE[0],
        width=SIZE[1],
        frames=ArrayFrames([frame[..., ::-1] for frame in frames]),
        masks=ListedMasks({i: [mask if t == at else None for t in range(4)] for i, (at, mask) in given.items()}),
        prompt_frames={i: at for i, (at, _) in given.items()},
    )
    item = {"record": record, "dataset_name": "x", "task": "vos", "label_set": "object", "overlap": False, "topk": 10}
    objects = segment_video(predictor.model, item, predictor.settings)["objects"]
    session = predictor.start(frames[0], {7: box(3, 4), 9: box(30, 20)})
    for t in range(4):
        if t:
            session.step(frames[t])
        if t == 2:
            session.add(4, box(20, 10))
        for object_id, masks_of_object in objects.items():
            expected = decode(rle) if (rle := masks_of_object[t]) else np.zeros(SIZE, bool)
            assert np.array_equal(session.result.id_map == object_id, expected), (t, object_id)


def test_prompt_index_zero_predicts_the_first_frame() -> None:
    predictor = VideoPredictor(tiny_cfg("MODEL.AUSM.PROMPT_INDEX", "zero"))
    session = predictor.start(noise(1)[0], {3: box(3, 4)})
    assert ids(session.result) == [3] and not np.array_equal(masks(session.result)[3], box(3, 4))
    assert session.result.instances.scores.item() < 1


def test_small_frames_and_large_ones(predictor: VideoPredictor) -> None:
    for size in ((1, 1), (7, 45), (33, 31)):
        for result in predictor.stream(noise(2, size)):
            assert result.id_map.shape == size
    shrinks = VideoPredictor(tiny_cfg("INPUT.MIN_SIZE_TEST", 32))
    session = shrinks.start(noise(1, (90, 200))[0], {1: np.ones((90, 200), bool)})
    assert session.step(noise(2, (90, 200))[1]).instances.pred_masks.shape == (1, 90, 200)


def test_bfloat16_is_enabled_by_the_config() -> None:
    predictor = VideoPredictor(tiny_cfg("TEST.AUSM.AMP", True))
    for result in predictor.stream(noise(2)):
        assert torch.isfinite(result.instances.scores).all()


# -------------------------------------------------------------------------------------------- objects come, change, go


def test_an_added_object_is_in_the_result_at_once(predictor: VideoPredictor) -> None:
    frames = noise(3)
    session = predictor.start(frames[0], {7: box(0, 0)})
    before = session.step(frames[1])
    session.add(3, box(30, 20))
    assert session.result.frame_index == 1 and ids(session.result) == [7, 3] and ids(before) == [7]
    assert np.array_equal(masks(session.result)[3], box(30, 20))
    assert (session.result.id_map.numpy()[box(30, 20)] == 3).all()
    assert session.result.instances.scores[1] == 1
    assert ids(session.step(frames[2])) == [7, 3]


def test_adding_an_object_after_a_step_equals_prompting_it_with_the_frame(predictor: VideoPredictor) -> None:
    """A mask added after the first step and the same mask as a prompt of it lead to the same next frame."""
    frames = noise(2)
    given = predictor.start(frames[0], {7: box(3, 4), 9: box(30, 20)})
    added = predictor.start(frames[0], {})
    assert len(added.result.instances) == 0
    for object_id, mask in {7: box(3, 4), 9: box(30, 20)}.items():
        added.add(object_id, mask)
    assert_same(given.result, added.result)
    assert_same(given.step(frames[1]), added.step(frames[1]))


def test_the_largest_logit_has_the_pixel_in_step_add_and_remove(predictor: VideoPredictor, tmp_path: Path) -> None:
    """The largest logit; prompted masks before predictions, and of prompted masks the first one listed."""
    frames = noise(3)
    given = predictor.start(frames[0], {7: box(3, 4), 9: box(10, 8), 5: box(20, 10)})
    added = predictor.start(frames[0], {})
    for object_id, mask in {7: box(3, 4), 9: box(10, 8), 5: box(20, 10)}.items():
        added.add(object_id, mask)
    assert_same(given.result, added.result)
    assert (given.result.id_map.numpy()[box(3, 4)] == 7).all()
    given.step(frames[1])
    logits = given._stream.logits(given._rows)
    given.remove(7)
    given.save(tmp_path / "session.pt")
    for session in (given, predictor.load(tmp_path / "session.pt")):
        winner = logits[1:].max(dim=0)
        expected = torch.where(winner.values > 0, torch.tensor([9, 5])[winner.indices], 0)
        assert torch.equal(session.result.id_map, expected.int())
        session.add(30, box(0, 0))
        expected[torch.from_numpy(box(0, 0))] = 30
        assert torch.equal(session.result.id_map, expected.int())
        session.remove(30)


def test_a_correction_replaces_the_mask(predictor: VideoPredictor) -> None:
    frames = noise(3)
    session = predictor.start(frames[0], {7: box(3, 4), 8: box(10, 10)})
    session.step(frames[1])
    session.add(7, box(40, 25))
    assert sorted(ids(session.result)) == [7, 8]
    assert np.array_equal(masks(session.result)[7], box(40, 25))
    assert np.array_equal(session.result.id_map == 7, box(40, 25))
    assert ids(session.step(frames[2])) == [7, 8]


def test_a_removed_object_uncovers_the_objects_behind_it(predictor: VideoPredictor) -> None:
    frames = noise(2)
    session = predictor.start(frames[0], {7: box(3, 4), 8: box(10, 10)})
    assert (session.result.id_map.numpy()[box(3, 4) & box(10, 10)] == 7).all()
    session.remove(7)
    assert ids(session.result) == [8] and session.track_ids == [8]
    assert np.array_equal(session.result.id_map == 8, box(10, 10))
    assert ids(session.step(frames[1])) == [8]
    with pytest.raises(UserError, match=r"object 7 is not followed; followed now: \[8\]"):
        session.remove(7)


def test_a_user_may_add_to_what_was_detected(predictor: VideoPredictor) -> None:
    frames = noise(2)
    session = predictor.start(frames[0])
    assert session.label_set == "synthvis" and ids(session.result)
    session.remove(ids(session.result)[0])
    session.add(90, box(3, 4))
    assert ids(session.result)[-1] == 90
    assert 90 in ids(session.step(frames[1]))


# --------------------------------------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("prompted", [False, True])
def test_a_loaded_session_continues_bit_for_bit(tmp_path: Path, prompted: bool) -> None:
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "weights.pth")
    predictor = VideoPredictor(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "weights.pth")))
    frames = noise(5)
    session = predictor.start(frames[0], {7: box(3, 4), 9: box(30, 20)} if prompted else None)
    session.step(frames[1])
    session.remove(session.track_ids[1])
    session.add(60, box(40, 0))
    session.save(tmp_path / "new" / "session.pt")
    saved_result = session.result
    expected = [session.step(frame) for frame in frames[2:]]
    loaded = predictor.load(tmp_path / "new" / "session.pt")
    assert_same(loaded.result, saved_result)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["session.pt"]
    for frame, result in zip(frames[2:], expected, strict=True):
        assert_same(loaded.step(frame), result)
    for each in (loaded, session):
        each.remove(60)
        each.add(61, box(0, 20))
    assert_same(loaded.step(frames[0]), session.step(frames[0]))


def _continue(weights: Path, session_file: Path, frames: Path, out: Path) -> None:
    session = VideoPredictor(tiny_cfg("MODEL.WEIGHTS", str(weights))).load(session_file)
    results = [session.step(frame) for frame in np.load(frames)]
    torch.save([{**r.instances.get_fields(), "id_map": r.id_map, "frame_index": r.frame_index} for r in results], out)


def test_another_process_continues_bit_for_bit(new_processes: ForkServerContext, tmp_path: Path) -> None:
    weights, session_file, rest, out = (tmp_path / name for name in ("w.pth", "session.pt", "rest.npy", "out.pt"))
    torch.save({"model": tiny_model().state_dict()}, weights)
    frames = noise(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads may change the order of sums
    session = VideoPredictor(tiny_cfg("MODEL.WEIGHTS", str(weights))).start(frames[0])
    session.step(frames[1])
    session.save(session_file)
    np.save(rest, np.stack(frames[2:]))
    expected = [session.step(frame) for frame in frames[2:]]
    torch.set_num_threads(threads)
    call(new_processes, tmp_path / "log", _continue, weights, session_file, rest, out)
    for result, other in zip(expected, torch.load(out, weights_only=True), strict=True):
        for name, value in {**result.instances.get_fields(), "id_map": result.id_map}.items():
            assert torch.equal(value, other[name]), name
        assert result.frame_index == other["frame_index"]


def test_files_that_are_not_sessions_of_this_model_are_refused(predictor: VideoPredictor, tmp_path: Path) -> None:
    path = tmp_path / "session.pt"
    with pytest.raises(UserError, match=r"session\.pt: cannot be read: No such file"):
        predictor.load(path)
    session = predictor.start(noise(1)[0])
    session.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"session\.pt: not a file of torch.save, or damaged"):
        predictor.load(path)
    path.write_bytes(pickle.dumps(Path("a pickle that would run code"), protocol=2))
    with pytest.raises(UserError, match=r"session\.pt: not a file of torch.save, or damaged"):
        predictor.load(path)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="not a saved session"):
        predictor.load(path)
    path.write_bytes(whole)
    torch.manual_seed(5)
    with pytest.raises(UserError, match="saved with other weights"):
        VideoPredictor(tiny_cfg()).load(path)
    other = VideoPredictor(tiny_cfg("TEST.AUSM.FG_THRESHOLD", 0.9))
    other.model.load_state_dict(predictor.model.state_dict())
    with pytest.raises(UserError, match=r"or with other settings \(MODEL, TEST.AUSM"):
        other.load(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        session.save(tmp_path / "file" / "session.pt")


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({0: box(0, 0)}, r"object id 0: ids are whole numbers from 1 on"),
        ({-4: box(0, 0)}, r"object id -4: ids"),
        ({1.5: box(0, 0)}, r"object id 1\.5: ids"),
        ({True: box(0, 0)}, r"object id True: ids"),
        ({"7": box(0, 0)}, r"object id '7': ids"),
        ({7: (1, 2, 3, 4)}, r"object 7: a prompt is a mask, a bool array .*; found tuple"),
        ({7: box(0, 0).astype(float)}, r"object 7: a mask is bool or 0/1 uint8 \(H, W\); found float64 \(50, 70\)"),
        ({7: box(0, 0)[None]}, r"object 7: a mask is bool .* found bool \(1, 50, 70\)"),
        ({7: box(0, 0).T}, r"object 7: its mask is 50x70 pixels, the frame 70x50"),
        ({7: box(0, 0).astype(np.uint8) * 255}, r"object 7: a uint8 mask holds 0 and 1; found 255"),
        ({3: box(0, 0), 7: box(0, 0, 0)}, r"object 7: its mask is empty"),
    ],
)
def test_invalid_prompts_are_refused(predictor: VideoPredictor, prompts: dict[Any, Any], message: str) -> None:
    frames = noise(2)
    with pytest.raises(UserError, match=message):
        predictor.start(frames[0], prompts)
    session = predictor.start(frames[0], {20: box(1, 1)})
    for object_id, mask in prompts.items():
        if len(prompts) == 1:
            with pytest.raises(UserError, match=message):
                session.add(object_id, mask)
    assert ids(session.step(frames[1])) == [20]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("frame.jpg", r"a frame is a NumPy array, uint8 \(H, W, 3\), BGR; found str"),
        (np.zeros((50, 70), np.uint8), r"a frame is uint8 \(H, W, 3\), BGR; found uint8 \(50, 70\)"),
        (np.zeros((50, 70, 4), np.uint8), r"found uint8 \(50, 70, 4\)"),
        (np.zeros((50, 70, 3), np.float32), r"found float32"),
        (np.zeros((0, 70, 3), np.uint8), r"found uint8 \(0, 70, 3\)"),
        (np.zeros((70, 50, 3), np.uint8), r"a frame of 50x70 pixels follows frames of 70x50"),
    ],
)
def test_invalid_frames_leave_the_session_unchanged(predictor: VideoPredictor, frame: Any, message: str) -> None:
    frames = noise(2)
    session, undisturbed = (predictor.start(frames[0], {7: box(3, 4)}) for _ in range(2))
    with pytest.raises(UserError, match=message):
        session.step(frame)
    assert_same(session.step(frames[1]), undisturbed.step(frames[1]))


def test_invalid_configs_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"no label set 'coco', MODEL\.AUSM\.LABEL_SETS has \['synthvis', 'object'\]"):
        VideoPredictor(tiny_cfg("TEST.AUSM.LABEL_SET", "coco"))
    with pytest.raises(UserError, match="no label set 'people'"):
        VideoPredictor(tiny_cfg("MODEL.AUSM.PROMPT_LABEL_SET", "people"))
    with pytest.raises(UserError, match=r"nowhere\.pth' does not exist"):
        VideoPredictor(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")))
    with caplog.at_level(logging.WARNING):
        VideoPredictor(tiny_cfg("TEST.AUSM.REPEAT", 3))
    assert "a stream sees a frame once" in caplog.text


def test_classes_have_the_names_of_the_configs_data(predictor: VideoPredictor) -> None:
    named = VideoPredictor(tiny_cfg("DATASETS.TEST", ("synthvis_val",), "TEST.AUSM.LABEL_SET", "object"))
    assert named.label_set == "object" and predictor.label_set == "synthvis"
    assert len(named.class_names("synthvis")) == 6 and "synthvis 0" not in named.class_names("synthvis")
    assert predictor.class_names("synthvis")[1] == "synthvis 1" and predictor.class_names("object") == ["object"]
