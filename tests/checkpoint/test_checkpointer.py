# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.errors import UserError
from tests.checkpoint.small import as_mask2former, small_model, write_pickle
from tests.tiny import tiny_model


def test_save_and_resume(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model.x_start.sum().backward()
    optimizer.step()
    AUSMCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000004", iteration=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]

    again = small_model()
    other = torch.optim.AdamW(again.parameters())
    more = AUSMCheckpointer(again, str(tmp_path), complete=True, optimizer=other).resume_or_load("", resume=True)
    assert more["iteration"] == 4
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_weights_for_inference_have_to_be_complete(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "m2f.pkl", {k: v.numpy() for k, v in as_mask2former(small_model()).items()})
    AUSMCheckpointer(small_model()).load(path)
    with pytest.raises(UserError, match=r"m2f\.pkl: these Mask2Former weights do not fit .*compressor\.layers"):
        AUSMCheckpointer(small_model(), complete=True).load(path)


def test_if_a_tensor_does_not_fit_nothing_is_loaded(tmp_path: Path) -> None:
    state = as_mask2former(small_model())
    state["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(11, 32)
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"query_feat.*\(11, 32\) in the file, \(10, 32\) in the model"):
        AUSMCheckpointer(model).load(write_pickle(tmp_path / "x.pkl", state))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_proposals_start_from_weights_with_learned_queries(tmp_path: Path) -> None:
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "learned.pth")
    model = tiny_model("MODEL.AUSM.PIXEL_DECODER.QUERIES", "proposals")
    AUSMCheckpointer(model).load(str(tmp_path / "learned.pth"))
    learned = tiny_model().pixel_decoder.query_feat.weight
    torch.testing.assert_close(model.pixel_decoder.query_feat.weight, learned.mean(dim=0, keepdim=True))
    with pytest.raises(UserError, match="proposals"):
        AUSMCheckpointer(model, complete=True).load(str(tmp_path / "learned.pth"))


def test_missing_weights_are_named() -> None:
    with pytest.raises(UserError, match=r"^MODEL\.WEIGHTS: weights file 'nowhere/x\.pth' does not exist$"):
        AUSMCheckpointer(small_model()).load("nowhere/x.pth")
    assert AUSMCheckpointer(small_model()).load("") == {}


def test_shipped_weights_are_found_by_their_address_and_a_missing_one_is_named() -> None:
    local = PathManager.get_local_path("ausm://some.pth")
    assert local.endswith(os.path.join("ausm_d2", "weights", "some.pth"))
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: weights file 'ausm://some\.pth' does not exist"):
        AUSMCheckpointer(torch.nn.Linear(1, 1)).load("ausm://some.pth")


def saved(folder: Path, *iterations: int) -> AUSMCheckpointer:
    """Checkpoints of those iterations."""
    checkpointer = AUSMCheckpointer(torch.nn.Linear(3, 2), str(folder))
    for iteration in iterations:
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return checkpointer


@pytest.mark.parametrize("damage", ["cut", "a byte", "empty", "gone", "no name", "no text"])
def test_after_a_damaged_last_checkpoint_the_one_before_is_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = saved(tmp_path, 99, 3, 11, 7)  # 99: of an older training in this folder
    last, tag = tmp_path / "model_0000007.pth", tmp_path / "last_checkpoint"
    assert checkpointer.get_checkpoint_file() == str(last)
    data = bytearray(last.read_bytes())
    if damage == "a byte":  # of a weight, which PyTorch would read as another weight
        data[data.index(checkpointer.model.weight.detach().numpy().tobytes()) + 2] ^= 1
        last.write_bytes(data)
        torch.load(last, weights_only=True)
    elif damage in ("cut", "empty"):
        last.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    elif damage == "gone":
        last.unlink()
    else:
        tag.write_bytes(b"" if damage == "no name" else b"\xff\xfe")
    with caplog.at_level("WARNING"):
        found = checkpointer.get_checkpoint_file()
    named = damage not in ("no name", "no text")
    assert Path(found).name == ("model_0000003.pth" if named else "model_0000099.pth")
    [message] = caplog.messages
    assert message.startswith(f"{tag}: ") and message.endswith(f"the one before it is used: {Path(found).name}")
    assert ("is damaged" in message) == (damage in ("cut", "a byte", "empty"))


def test_a_folder_whose_checkpoints_are_all_damaged_is_an_error(tmp_path: Path) -> None:
    checkpointer = saved(tmp_path, 3, 7)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"'model_0000007\.pth' is damaged, and there is no other one in that folder"):
        checkpointer.get_checkpoint_file()


def test_only_incomplete_files_are_removed(tmp_path: Path) -> None:
    checkpointer = saved(tmp_path, 3)
    (tmp_path / ".model_0000004.abcd1234.pth").write_bytes(b"half")
    (tmp_path / ".last_checkpoint.x_yz0123").write_bytes(b"")
    (tmp_path / ".bashrc").write_bytes(b"")
    checkpointer.remove_unfinished()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bashrc", "last_checkpoint", "model_0000003.pth"]
