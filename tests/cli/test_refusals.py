# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What the command lines refuse before anything is loaded, and what an export refuses after it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ausm_d2.cli import exporting
from ausm_d2.cli.main import main
from ausm_d2.errors import UserError
from ausm_d2.export import graph, runner
from ausm_d2.video.frame import Frame


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "-o", "x", "--size", "0x480"], "'0x480', expected width and height up to 8192"),
        (["export", "-o", "x", "--size", "854x0"], "'854x0', expected width and height up to 8192"),
        (["export", "-o", "x", "--size", "854x8193"], "'854x8193', expected width and height up to 8192"),
        (["export", "-o", "x", "--size", "854"], "'854', expected width and height up to 8192"),
        (["track", "a", "-o", "x", "--fps", "0"], "'0', expected frames a second"),
        (["track", "a", "-o", "x", "--fps", "1001"], "'1001', expected frames a second"),
        (["track", "a", "-o", "x", "--fps", "1/0"], "'1/0', expected frames a second"),
        (["track", "a", "-o", "x", "--raw", "0x4"], "'0x4', expected width and height"),
        (["track", "a", "-o", "x", "--raw", "4x0"], "'4x0', expected width and height"),
        (["track", "a", "-o", "x", "--raw", "4"], "'4', expected width and height"),
        (["track", "a", "-o", "x", "--box", "0:1,2,3,4"], "'0:1,2,3,4', expected object:left,top,right,bottom"),
        (["track", "a", "-o", "x", "--box", "1:1,2,3"], "'1:1,2,3', expected object:left,top,right,bottom"),
        (["track", "a", "-o", "x", "--box", "1,2,3,4"], "'1,2,3,4', expected object:left,top,right,bottom"),
        (["track", "a", "-o", "x", "--point", "1:2,3,2"], "'1:2,3,2': label 2, expected 1 or 0"),
        (["track", "a", "-o", ""], "-o/--output: empty, expected a path"),
        (["export", "-o", ""], "-o/--output: empty, expected a path"),
        (["train", "-o", ""], "-o/--output: empty, expected a path"),
        (["train", "--names", "a=cup"], "'a=cup', expected an object's id and its class"),
        (["train", "--names", "1= "], "'1= ', expected an object's id and its class"),
        (["train", "--names", "1"], "'1', expected an object's id and its class"),
        (["train", "--minutes", "0"], "'0', expected minutes"),
        (["train", "--held-out", "1"], "'1', expected a share above 0 and below 1"),
        (["train", "--iterations", "0"], "'0', expected"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def _options(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"check": "a.mp4", "mask": None, "size": (4, 6), "frames": 1, "threads": 1, "output": "x", **changes}
    )


class _Predictor:
    label_set = "coco"
    settings = SimpleNamespace(prompt_label_set="object", without_rules=lambda: None)


@pytest.mark.parametrize(
    ("label_set", "options", "overlap", "message"),
    [
        ("object", {}, 1.0, "--check: expected --label-set coco, that of detections"),
        ("coco", {"mask": "m.png"}, 1.0, "--check: expected --label-set object, that of prompts"),
        ("coco", {"size": (4, 7)}, 1.0, r"--check a\.mp4: frames of 6x4 pixels; add --size 6x4"),
        ("coco", {}, 0.5, r"the exported step has other masks than PyTorch: mean IoU 0\.5000"),
    ],
)
def test_a_comparison_with_pytorch_that_does_not_fit_or_differs(
    label_set: str, options: dict[str, Any], overlap: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Frame("0", np.zeros((4, 6, 3), np.uint8), 0.0)
    monkeypatch.setattr(exporting, "read_prompts", lambda _: {1: np.ones((4, 6), bool)})
    monkeypatch.setattr(exporting, "open_source", lambda _: None)
    monkeypatch.setattr(exporting, "with_first", lambda _: (first, SimpleNamespace(frames=iter([first]))))
    monkeypatch.setattr(exporting, "compare", lambda *_, **__: SimpleNamespace(mean_iou=overlap))
    with pytest.raises(UserError, match=message):
        exporting._check(_Predictor(), label_set, _options(**options))  # type: ignore[arg-type]


def test_an_export_to_where_nothing_can_be_written_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(*_: Any) -> None:
        raise AssertionError

    (tmp_path / "file").touch()
    for name, value in (("require_packages", lambda: None), ("config", lambda *_: None), ("export_step", work)):
        monkeypatch.setattr(exporting, name, value)
    monkeypatch.setattr(exporting, "VideoPredictor", lambda _: _Predictor)
    options = _options(check=None, output=str(tmp_path / "file" / "a.onnx"), opts=[], weights=None, config="x")
    options.label_set = None
    with pytest.raises(UserError, match="file: cannot be written to: "):
        exporting.run(options)
    options.output, options.check = str(tmp_path / "a.onnx"), "a.mp4"
    monkeypatch.setattr(exporting, "export_step", lambda *_: (tmp_path / "a.onnx").touch())
    monkeypatch.setattr(exporting, "open_source", work)
    with pytest.raises(UserError, match="--check: expected --label-set coco"):  # it is compared
        exporting.run(argparse.Namespace(**{**vars(options), "label_set": "object"}))


def test_packages_of_the_export_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"onnx is not installed; pip install 'ausm_d2\[export\]'"):
        graph.require_packages()
    with pytest.raises(UserError, match="onnx is not installed"):
        graph.export_step(None, (4, 6), "object", Path("a.onnx"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="onnx is not installed"):  # before anything is loaded
        main(["export", "-o", "a.onnx", "--config", "nothing"])
    with pytest.raises(UserError, match="onnxruntime is not installed; pip install onnxruntime"):
        runner.OnnxStream(Path("a.onnx"))


def test_frames_and_masks_that_an_exported_step_refuses() -> None:
    stream = SimpleNamespace(settings=SimpleNamespace(size=(4, 6)), _mark=lambda mask: mask)
    frame, mask = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), bool)
    marks = runner.OnnxStream._marks
    assert marks(stream, frame, {1: mask}).keys() == {1}  # type: ignore[arg-type]
    for wrong, found in (([], "list"), (frame.astype(float), "float64"), (frame[:3], r"uint8 \(3, 6, 3\)")):
        with pytest.raises(UserError, match=rf"a frame is uint8 \(4, 6, 3\), .*; found {found}"):
            marks(stream, wrong, {})  # type: ignore[arg-type]
    for key, given in ((1, mask.astype(int)), (1, mask[:3]), (1, ~mask), (0, mask)):
        with pytest.raises(UserError, match=rf"object {key}: expected an id of 1 or more and a bool mask \(4, 6\)"):
            marks(stream, frame, {key: given})  # type: ignore[arg-type]
