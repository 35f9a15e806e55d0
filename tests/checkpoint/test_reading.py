# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from ausm_d2.checkpoint.reading import read_checkpoint
from ausm_d2.errors import UserError


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("legacy", [False, True, None])
def test_code_in_a_checkpoint_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool | None
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"model": {"weight": torch.zeros(2)}, "config": Evil()}
    if legacy is None:
        Path("file").write_bytes(pickle.dumps(data))
    else:
        torch.save(data, "file", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"^file: refused, it holds '(posix|nt)\.system'; "):
        read_checkpoint("file")
    assert not Path("evil").exists()


def test_objects_are_refused_by_name(tmp_path: Path) -> None:
    for name, write in (("a.pkl", lambda data, path: path.write_bytes(pickle.dumps(data))), ("b.pth", torch.save)):
        write({"model": {}, "cfg": CfgNode({"A": 1})}, tmp_path / name)
        with pytest.raises(UserError, match=r"refused, it holds 'fvcore\.common\.config\.CfgNode|detectron2\.config"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles_of_arrays_tensors_and_values(tmp_path: Path, protocol: int) -> None:
    data = {
        "model": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=torch.ones(2, dtype=torch.float16)),
        "c": {"lr": 0.1, "sizes": {1, 2}, "name": "x", "raw": b"\x00\xff", "scalar": np.float64(2.5), "none": None},
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    read = read_checkpoint(tmp_path / "x.pkl")
    torch.testing.assert_close(read["model"]["a"], torch.arange(6.0).view(2, 3))
    torch.testing.assert_close(read["model"]["b"], torch.ones(2, dtype=torch.float16))
    assert read["c"] == data["c"]


def test_files_of_torch_save(tmp_path: Path) -> None:
    data = {"state_dict": {"a": torch.ones(2), "b": np.ones(2)}, "epoch": np.int64(3)}
    for legacy in (False, True):
        torch.save(data, tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
        read = read_checkpoint(tmp_path / "x.bin")
        assert read["epoch"] == 3
        torch.testing.assert_close(read["model"]["b"], torch.ones(2, dtype=torch.float64))
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pth")
    assert read_checkpoint(tmp_path / "bare.pth")["model"].keys() == {"a"}


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(1000)}}, buffer)
    whole = buffer.getvalue()
    for name, content in (
        ("empty.pth", b""),
        ("text.pkl", b"not a checkpoint"),
        ("half.pth", whole[: len(whole) // 2]),
        ("half.pkl", pickle.dumps({"model": {"a": np.ones(1000)}})[:500]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a checkpoint, or damaged"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match=r"missing\.pth' does not exist"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list, expected a dictionary"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"model": {"a": "text"}}, tmp_path / "named.pth")
    with pytest.raises(UserError, match="'a' is a str, expected a dense tensor"):
        read_checkpoint(tmp_path / "named.pth")


def test_weights_that_are_packed_or_damaged_are_refused(tmp_path: Path) -> None:
    """torch.load would unpack them at any size, and does not verify checksums."""
    path = tmp_path / "weights.pth"
    torch.save({"model": {"w": torch.zeros(100_000)}}, path)
    packed, damaged = tmp_path / "packed.pth", tmp_path / "damaged.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in whole.infolist():
            archive.writestr(part.filename, whole.read(part))
    with pytest.raises(UserError, match=r"packed\.pth: refused, its contents are packed$"):
        read_checkpoint(packed)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert torch.load(damaged, weights_only=True)["model"]["w"].any()
    with pytest.raises(UserError, match=r"damaged\.pth: damaged: the checksum of 'weights/data/0' does not fit$"):
        read_checkpoint(damaged)
