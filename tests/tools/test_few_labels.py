# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ausm_d2.errors import UserError
from tests.finetune.own import annotation, coco
from tools import few_labels


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, table: dict[str, Any], *options: str) -> dict[str, Any]:
    (folder / "labels.json").write_text(json.dumps(table))
    out = folder / "few.json"
    monkeypatch.setattr(sys, "argv", ["few_labels", str(folder / "labels.json"), *options, "-o", str(out)])
    few_labels.main()
    return json.loads(out.read_text())


def test_the_first_images_that_fit_are_taken_with_all_their_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = coco(6)
    table["images"].reverse()
    table["annotations"][0]["iscrowd"] = 1  # image 0
    table["annotations"][1]["area"] = 1  # image 1: too small
    table["annotations"] += [annotation(100 + i, 2, 7, x=i) for i in range(5)]  # image 2: six cups
    taken = run(monkeypatch, tmp_path, table, "--classes", "cup", "--images", "2")
    assert [image["id"] for image in taken["images"]] == [3, 4]
    assert sorted(each["id"] for each in taken["annotations"]) == [13, 14, 54], "a spoon is kept too"
    assert len(run(monkeypatch, tmp_path, table, "--classes", "cup")["images"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "fork"], r"--classes: \['fork'\] found; .* has cup, spoon"),
        (["--classes", "cup", "--images", "9"], "5 images fit; 9 or more expected"),
    ],
)
def test_what_cannot_be_taken_is_said(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, tmp_path, coco(5), *options)
    assert not (tmp_path / "few.json").exists()
