# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ausm_d2.errors import UserError
from ausm_d2.masks.rle import read_json_with_masks


def plain(data: Any) -> Any:
    """Arrays as lists again."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list):
        return [plain(value) for value in data]
    return data.tolist() if isinstance(data, np.ndarray) else data


def test_run_lengths_become_arrays_and_all_else_stays(tmp_path: Path) -> None:
    masks = [{"size": [4, 5], "counts": [3, 17]}, None, {"counts": "PPYo[1", "size": [1, 2]}]
    data = {"annotations": [{"note": '"counts": [1, 2]', "segmentations": masks, "score": 0.5}], "counts": 5}
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data), encoding="utf-8-sig")
    read = read_json_with_masks(path)
    assert plain(read) == data
    assert read["annotations"][0]["segmentations"][0]["counts"].dtype == np.uint32


@pytest.mark.parametrize(
    "text",
    [
        '{"counts": []}',
        '{"counts": [ ]}',
        '{"counts": [1.5, 2]}',
        '{"counts": [-1, 2]}',
        '{"counts": ["1", 2]}',
        '{"counts": [[1, 2], [3]]}',
        '{"counts": [1, 123456789]}',
        '{"counts": [1, 99999999999999999999]}',
        '{"counts": [null]}',
        '{"counts": [{"counts": [1, 2]}]}',
        '{"c\\u006funts": [1, 2]}',
        '{"a\\"counts": [1, 2], "counts": [3]}',
        '["\\"counts", {"counts": [3]}]',
        '{"counts": [1, 2], "counts": [3]}',
        '{"counts": NaN, "score": Infinity}',
        '[{"counts": [1]}, {"counts": 7}, {"counts": {}}]',
        "[]",
        "3",
    ],
)
def test_unusual_json_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    assert repr(plain(read_json_with_masks(path))) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"counts": [1 2]}',
        '{"counts": [1, 2',
        '{"counts": [1, 2]',
        '{"counts": [1, 2]} x',
        "",
    ],
)
def test_invalid_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    with pytest.raises(UserError, match=r"data\.json: not a JSON file: .* at line 1"):
        read_json_with_masks(path)


def test_unreadable_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file"):
        read_json_with_masks(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b'{"counts": [1, 2], "a": "\xff\xfe"}')
    with pytest.raises(UserError, match=r"binary\.json: not a JSON file: it is not text"):
        read_json_with_masks(tmp_path / "binary.json")
