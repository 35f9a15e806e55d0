# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from tests.checkpoint.small import as_mask2former, layout_older, small_config
from tests.official_weights import mask2former_shapes, swin_shapes, zeros
from tools import convert_weights


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(small_config().dump())
    return str(path)


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_weights.py", *args])
    convert_weights.main()


def save(path: Path, state: dict) -> str:
    path.write_bytes(pickle.dumps({"model": {name: value.numpy() for name, value in state.items()}}))
    return str(path)


def test_converted_file_loads_as_the_original_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str
) -> None:
    source = AUSM(small_config())
    weights = save(tmp_path / "model_final.pkl", layout_older(as_mask2former(source)))
    out = str(tmp_path / "converted.pth")
    # A smaller window: its position tables are resized.
    run(monkeypatch, weights, "--config-file", config, "--output", out, "--opts", "MODEL.SWIN.WINDOW_SIZE", "3")
    printed = capsys.readouterr().out
    assert "7 resized" in printed and "0 does not fit" in printed and f"wrote {out}" in printed

    direct, converted = (AUSM(small_config("MODEL.SWIN.WINDOW_SIZE", 3)) for _ in range(2))
    AUSMCheckpointer(direct).load(weights)
    AUSMCheckpointer(converted).load(out)
    changed = 0
    for name, value in direct.frame_encoder.state_dict().items():
        assert torch.equal(converted.frame_encoder.state_dict()[name], value)
        same = source.frame_encoder.state_dict()[name]
        changed += same.shape == value.shape and torch.equal(same, value)
    assert changed == len(source.frame_encoder.state_dict()) - 2 * 7  # the tables and the indices into them


def test_mismatches_are_printed_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str
) -> None:
    weights = save(tmp_path / "wide.pkl", zeros(mask2former_shapes(32, (2, 2, 1, 2), (1, 2, 4, 8), 4)))
    with pytest.raises(UserError, match=r"wide\.pkl: these Mask2Former weights do not fit the config"):
        run(monkeypatch, weights, "--config-file", config, "--output", str(tmp_path / "out.pth"))
    assert "(32, 3, 4, 4) in the file, (16, 3, 4, 4) in the model" in capsys.readouterr().out
    assert not (tmp_path / "out.pth").exists()


def test_swin_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str
) -> None:
    shapes = swin_shapes(16, (2, 2, 1, 2), (1, 2, 4, 8), 4)
    shapes = {name: shape for name, shape in shapes.items() if name[:5] not in ("norm0", "norm1", "norm2", "norm3")}
    shapes |= {"norm.weight": (128,), "norm.bias": (128,), "head.weight": (1000, 128), "head.bias": (1000,)}
    run(monkeypatch, save(tmp_path / "swin.pth", zeros(shapes)), "--config-file", config)
    printed = capsys.readouterr().out
    assert "the classifier's" in printed and "a norm per stage, which a classifier does not have" in printed


def test_the_mean_of_several_files_is_written_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str
) -> None:
    paths, states = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(AUSM(small_config()).state_dict())
        paths.append(str(tmp_path / f"{seed}.pth"))
        torch.save({"model": states[-1]}, paths[-1])
    out = tmp_path / "mean.pth"
    run(monkeypatch, *paths, "--config-file", config, "--half", "--output", str(out))
    assert capsys.readouterr().out.count("AUSM weights") == 3
    model = AUSM(small_config())
    AUSMCheckpointer(model, complete=True).load(str(out))
    for name, value in model.state_dict().items():
        mean = torch.stack([state[name].double() for state in states]).mean(dim=0).to(value.dtype)
        expected = mean.half() if value.is_floating_point() else states[0][name]
        assert torch.equal(value.float(), expected.float()), name


def test_files_of_different_tensors_have_no_mean() -> None:
    with pytest.raises(UserError, match=r"file 2 and the first have not the same tensors: b \(of 1\)"):
        convert_weights.mean_weights([{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}])
