# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from ausm_d2.data.build import get_records
from ausm_d2.data.views import as_clips, first_videos, stills
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import decode
from tests.data.stubs import moving_square, register, small_cfg


def test_first_videos_are_a_data_set_of_their_own() -> None:
    short = first_videos("synthvis_val_vos", 2)
    assert short == first_videos("synthvis_val_vos", 2) == "synthvis_val_vos_first2"
    assert [record.name for record in get_records(short)] == [
        record.name for record in get_records("synthvis_val_vos")[:2]
    ]
    assert MetadataCatalog.get(short).task == "vos"
    assert first_videos("synthvis_val_vos", None) == "synthvis_val_vos"


def test_a_still_is_the_middle_frame_with_what_is_visible_in_it() -> None:
    name = stills(first_videos("synthvis_val", 3))
    assert MetadataCatalog.get(name).task == "image"
    for still, record in zip(get_records(name), get_records("synthvis_val")[:3], strict=True):
        assert still.length == 1
        assert np.array_equal(still.frames[0], record.frames[record.length // 2])
        assert {each.instance_id for each in still.instances} == set(record.masks.read(record.length // 2))


def test_clips_of_images_move_as_in_training_and_come_back() -> None:
    register("stills", [moving_square(i, length=1) for i in range(4)], task="image")
    cfg = small_cfg()
    cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN, cfg.MODEL.AUSM.NUM_ID = (48,), 8
    there, back, other = (
        as_clips("stills", cfg, 2, back=back, seed=s) for back, s in ((False, 0), (True, 0), (True, 1))
    )
    assert MetadataCatalog.get(back).task == "vis" and MetadataCatalog.get(back).evaluator_type == "ytvis"
    clips, of_seed = get_records(back), get_records(other)
    assert [clip.video_id for clip in clips] == [0, 2]
    for clip, plain, another in zip(clips, get_records(there), of_seed, strict=True):
        frames = np.stack([clip.frames[t] for t in range(clip.length)])
        assert frames.shape == (15, clip.height, clip.width, 3) and clip.frames.names[-1] == "00014"
        assert np.array_equal(frames, frames[::-1]) and not np.array_equal(frames[0], frames[7])
        assert np.array_equal(frames[:8], np.stack([plain.frames[t] for t in range(plain.length)]))
        assert not np.array_equal(frames, np.stack([another.frames[t] for t in range(15)]))
        assert [(each.instance_id, each.category_id) for each in clip.instances] == [(1, 1)]
        for t in (0, 7, 14):
            mask = decode(clip.masks.read(t)[1])
            assert (mask == (frames[t, ..., 0] > 127)).mean() > 0.97  # the square is white on black
    with pytest.raises(UserError, match=r"synthvis_val: is a data set of videos; clips are made of images"):
        as_clips("synthvis_val", cfg, 2)
