# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Files made to do harm: small ones that stand for much, and names that lead elsewhere.

Planted pickles are in tests/checkpoint/test_reading.py, YAML files in tests/config/test_files.py.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.reading import read_checkpoint
from ausm_d2.data.build import get_records
from ausm_d2.data.catalog.coco import register_coco_style
from ausm_d2.data.catalog.ytvis import register_ytvis_style
from ausm_d2.errors import UserError
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission import base
from ausm_d2.evaluation.submission.archive import write
from ausm_d2.io import read_json
from ausm_d2.masks.png import read_picture


def test_an_entry_of_a_zip_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.json", bytes(base._LARGE + 1))
        archive.writestr("large.json", np.random.default_rng(0).bytes(2000))
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # of the bomb, nothing may be read
    with pytest.raises(UserError, match=r"results\.zip: bomb\.json in it is not read: 0\.1 GB that were packed into 0"):
        base.Files(path).read("bomb.json")
    monkeypatch.undo()
    monkeypatch.setattr(base, "_LARGE", 1000)
    assert len(base.Files(path).read("large.json")) == 2000, "large, but hardly packed"


def test_an_entry_of_a_zip_that_hides_its_size_is_not_unpacked_beyond_it(tmp_path: Path) -> None:
    path = tmp_path / "results.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", bytes(1_000_000))
    whole = path.read_bytes()
    size = struct.pack("<I", 1_000_000)
    assert whole.count(size) == 2
    path.write_bytes(whole.replace(size, struct.pack("<I", 10)))
    with pytest.raises(UserError, match=r"results\.zip: a\.json in it cannot be read: Bad CRC-32"):
        base.Files(path).read("a.json")


@pytest.mark.parametrize(
    "name", ["../out.json", "a/../../out.json", "/tmp/out.json"], ids=["above", "above, inside", "absolute"]
)
@pytest.mark.parametrize("kind", ["a.zip", "folder"])
def test_nothing_is_written_outside_of_a_submission(tmp_path: Path, kind: str, name: str) -> None:
    target = tmp_path / "in" / kind
    with pytest.raises(UserError, match="would lie outside of the submission"):
        write(target, [("first.json", [b"1"]), (name, [b"2"])])
    assert not target.exists() and [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_names_in_annotation_files_lead_to_no_file_outside_of_the_results(tmp_path: Path) -> None:
    ids = ["../../up", "/etc/passwd", "a\0b", "..", ".", "x" * 5000, "nul\n"]
    videos = [
        {"id": each, "width": 8, "height": 6, "length": 1, "file_names": [f"../../../{i}/../00000.jpg"]}
        for i, each in enumerate(ids)
    ]
    data = {"videos": videos, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    register_ytvis_style("leads_out_train", str(tmp_path / "a.json"), str(tmp_path))
    results = ResultFolder(tmp_path / "in" / "results")
    records = get_records("leads_out_train")
    paths = [results.path(record) for record in records]
    assert len(paths) == len(set(paths)) == len(ids)
    for record, path in zip(records, paths, strict=True):
        results.write(record, "{}")
        assert path.resolve().parent == results.folder
        assert "/" not in record.name and record.name not in ("", ".", "..")
    assert len(results.files()) == len(ids)


def test_the_name_of_an_image_is_that_of_a_file(tmp_path: Path) -> None:
    images = [
        {"id": i, "file_name": name, "width": 8, "height": 6} for i, name in enumerate(["../a.jpg", "/b/../c.jpg"])
    ]
    data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    register_coco_style("image_leads_out_train", str(tmp_path / "a.json"), str(tmp_path))
    assert [record.name for record in get_records("image_leads_out_train")] == ["a", "c"]


def test_the_last_checkpoint_is_one_of_its_folder_whatever_is_written_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    torch.save({"model": {}}, tmp_path / "model_0000001.pth")
    (tmp_path / "out" / "last_checkpoint").write_text("../model_0000001.pth")
    with pytest.raises(UserError, match=r"the checkpoint 'model_0000001\.pth' is not there"):
        AUSMCheckpointer(torch.nn.Linear(1, 1), str(tmp_path / "out")).get_checkpoint_file()


PICKLES = {
    "a place in the memo far away": (b"\x80\x04K\x01r\xff\xff\xff\x7f.", "damaged"),
    "a bytearray of a size": (b"\x80\x04cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "damaged"),
    "an array of a size": (b"\x80\x04cnumpy\nndarray\n(J\xff\xff\xff\x7ft\x85R.", "damaged"),
    "text longer than the file": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
    "getattr": (
        b"\x80\x04cbuiltins\ngetattr\n(cbuiltins\nset\nX\x04\0\0\0copytR.",
        "refused, it holds 'builtins.getattr",
    ),
    "a dotted name": (b"\x80\x04\x8c\x0bcollections\x94\x8c\x14OrderedDict.__init__\x94\x93.", "refused, it holds"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_that_claim_memory_or_reach_for_more_are_refused(tmp_path: Path, kind: str) -> None:
    content, message = PICKLES[kind]
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.pkl: .*{message}"):
        read_checkpoint(tmp_path / "a.pkl")


def test_a_pickle_nested_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b".")
    with pytest.raises(UserError, match=r"a\.pkl: "):
        read_checkpoint(tmp_path / "a.pkl")
    value: object = {}
    for _ in range(300):
        value = {"model": value}
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"b\.pkl: 'model' is a dict, expected a dense tensor"):
        read_checkpoint(tmp_path / "b.pkl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("9" * 5000, "thousands of digits"),
    ],
)
def test_json_that_python_cannot_hold_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json: not read: .*{message}"):
        read_json(tmp_path / "a.json")


def test_a_picture_that_claims_to_be_gigantic_is_no_mask(tmp_path: Path) -> None:
    """100,000 x 100,000 pixels in 60 bytes."""
    from zlib import crc32

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"a\.png: "):
        read_picture(path)
