# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.jobs.prompt_file import read_prompt_file
from ausm_d2.masks.rle import encode
from ausm_d2.streaming.prompts import Box, Mask, Points, Scribble

ROOT = Path(__file__).resolve().parents[2]
BALL = np.zeros((40, 60), bool)
BALL[5:15, 10:30] = True


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_a_file_holds_prompts_of_any_type_object_and_frame(tmp_path: Path) -> None:
    Image.fromarray(BALL.astype(np.uint8) * 255).save(tmp_path / "ball.png")
    data = {
        "version": 1,
        "find": True,
        "objects": [
            {
                "id": 3,
                "name": "ball",
                "prompts": [
                    {"box": [1, 2, 30, 40.5]},
                    {"frame": 0, "points": [[5, 6], [7, 8]], "labels": [1, 0]},
                    {"frame": 12, "mask": "ball.png"},
                ],
            },
            {"id": 9, "prompts": [{"frame": 12, "mask": encode(BALL)}, {"scribble": [[1, 2], [3, 4]], "width": 8}]},
        ],
    }
    plan = read_prompt_file(write(tmp_path / "p.json", data))
    assert plan.find and plan.names == {3: "ball"} and sorted(plan.prompts) == [0, 12]
    assert plan.prompts[0][3] == [Box(1, 2, 30, 40.5), Points([[5.0, 6.0], [7.0, 8.0]], [1, 0])]
    assert plan.prompts[0][9] == [Scribble([[1.0, 2.0], [3.0, 4.0]], 1, 8)]
    for object_id in (3, 9):
        (mask,) = plan.prompts[12][object_id]
        assert isinstance(mask, Mask) and np.array_equal(mask.mask, BALL)


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "command_line.md").read_text()
    Image.fromarray(BALL.astype(np.uint8)).save(tmp_path / "ball_40.png")
    (tmp_path / "p.json").write_text(text.split("```json")[1].split("```")[0])
    assert sorted(read_prompt_file(tmp_path / "p.json").prompts) == [0, 40]


def objects(**prompt: Any) -> dict[str, Any]:
    return {"objects": [{"id": 1, "prompts": [prompt]}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "an object with objects expected"),
        ({}, "'objects' is missing"),
        ({"objects": []}, "objects: a list expected, with one entry or more"),
        ({"objects": [], "finds": 1}, "'finds' is unknown; known: find, objects, version"),
        ({"objects": [{"id": 1}]}, r"objects\[0\]: 'prompts' is missing"),
        ({"version": 2, "objects": []}, "version: 2, expected 1"),
        ({"objects": [{"id": 0, "prompts": [{"box": [1, 2, 3, 4]}]}]}, r"objects\[0\]\.id: object id 0"),
        ({"objects": [{"id": 1, "prompts": [{"box": [1, 2, 3, 4]}]}] * 2}, r"objects\[1\]\.id: 1 is there twice"),
        (objects(), r"prompts\[0\]: 0 of mask, box, points, scribble found, one expected"),
        (objects(box=[1, 2, 3, 4], points=[[1, 2]]), r"prompts\[0\]: 2 of mask, box, points, scribble found"),
        (objects(box=[1, 2, 3]), r"prompts\[0\]\.box: \[1, 2, 3\] found, 4 numbers expected"),
        (objects(box=[1, 2, 3, "4"]), r"prompts\[0\]\.box: .* 4 numbers expected"),
        (objects(box=[1, 2, 3, 4], label=1), r"prompts\[0\]: 'label' is unknown; known: box, frame"),
        (objects(box=[1, 2, 3, 4], frame=-1), r"prompts\[0\]\.frame: -1, expected a whole number"),
        (objects(points=[[1, 2]], labels=[2]), r"prompts\[0\]\.labels: \[2\], expected 1 or 0 for each of 1 points"),
        (objects(points=[1, 2]), r"prompts\[0\]\.points\[0\]: 1 found, 2 numbers expected"),
        (objects(scribble=[[1, 2]], width=0), r"prompts\[0\]\.width: 0, expected pixels"),
        (objects(mask="none.png"), r"none\.png: the mask is missing"),
        (objects(mask=7), r"prompts\[0\]\.mask: expected the name of a picture, or run lengths"),
        (objects(mask={"size": [4, 4], "counts": [1, 2]}), r"prompts\[0\]\.mask: run lengths add up to 3 pixels"),
        (objects(mask={"size": [4, 4], "counts": "0"}), r"prompts\[0\]\.mask: run lengths that do not fill a frame"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_prompt_file(write(tmp_path / "p.json", data))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_the_schema_has_the_same_fields_as_the_reader() -> None:
    schema = json.loads((ROOT / "docs" / "prompts.schema.json").read_text())
    prompt = schema["$defs"]["prompt"]["properties"].keys()
    assert prompt == {"frame", "mask", "box", "points", "labels", "scribble", "label", "width"}
    assert schema["properties"].keys() == {"version", "find", "objects"}
    assert schema["$defs"]["object"]["properties"].keys() == {"id", "name", "prompts"}
