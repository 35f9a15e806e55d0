# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from detectron2.data import MetadataCatalog

from ausm_d2.data.build import get_records
from ausm_d2.data.views import first_videos, stills


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
