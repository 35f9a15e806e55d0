# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""An exported step and its driver against a session. Skipped without the extra [export]."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ausm_d2.cli.main import main
from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.export import graph
from ausm_d2.export.check import compare
from ausm_d2.export.graph import rules_left_out
from ausm_d2.export.runner import OnnxStream, _interpolation
from ausm_d2.modeling.masks import upsample_logits
from ausm_d2.streaming.predictor import VideoPredictor
from tests.streaming.opened import box, frames
from tests.tiny import tiny_cfg, tiny_yaml

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'ausm_d2[export]'")

SIZE = (40, 56)
SMALL = ["MODEL.BACKBONE.NAME", "build_convnet_backbone", "MODEL.AUSM.COMPRESSOR.LAYERS", 1, "MODEL.AUSM.NUM_ID", 4]
SMALL += ["MODEL.AUSM.PIXEL_DECODER.LAYERS", 1, "MODEL.AUSM.LABEL_SETS", [["object", 2]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with weights, and frames."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    options = [*SMALL, "TEST.AUSM.BIRTH_IOU", 0.9, "TEST.AUSM.HIDE_BELOW", 0.1]
    torch.save({"model": build_model(tiny_cfg(*options)).state_dict()}, folder / "tiny.pth")
    (folder / "tiny.yaml").write_text(tiny_yaml(*options, "MODEL.WEIGHTS", str(folder / "tiny.pth")))
    for t, frame in enumerate(frames(3, SIZE)):
        cv2.imwrite(str(folder / f"{t}.png"), frame)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    path = folder / "out" / "tiny.onnx"
    arguments = ["--config", folder / "tiny.yaml", "--size", "56x40", "-o", path, "--check", folder / "*.png"]
    assert main(["export", *map(str, arguments)]) == 0
    assert [each.name for each in path.parent.iterdir()] == ["tiny.onnx"]  # the weights are in it
    return path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> VideoPredictor:
    return VideoPredictor(load_config(str(folder / "tiny.yaml")))


def test_the_driver_gives_what_a_session_gives(predictor: VideoPredictor, exported: Path) -> None:
    clip, given = frames(4, SIZE), {7: box(SIZE), 3: box(SIZE, 20, 30, 38, 50)}
    found = compare(predictor, exported, clip, None, threads=1)
    assert found.frames == 4 and found.objects > 1 and found.least_iou > 0.99
    found = compare(predictor, exported, clip, given, threads=1)
    assert found.objects == 2 and found.least_iou > 0.99
    session, stream = predictor.start(clip[0], given), OnnxStream(exported, detect=False, threads=1)
    for t, frame in enumerate(clip):
        result = stream.step(frame, given if t == 0 else None)
        ours = session.result if t == 0 else session.step(frame)
        assert result.track_ids == ours.instances.track_ids.tolist() and result.frame_index == t
        assert np.allclose(result.scores, ours.instances.scores.numpy(), atol=1e-4)
        assert (result.id_map == ours.id_map.numpy()).mean() > 0.99
    stream.remove(7)
    session.remove(7)
    assert stream.step(clip[0]).track_ids == session.step(clip[0]).instances.track_ids.tolist() == [3]


def test_a_late_prompt_takes_over_what_was_detected(predictor: VideoPredictor, exported: Path) -> None:
    clip = frames(2, SIZE)
    stream = OnnxStream(exported, threads=1)
    stream.settings = replace(stream.settings, fg_threshold=0.0)
    first = stream.step(clip[0])
    row = int(first.masks.sum(axis=(1, 2)).argmax())
    result = stream.step(clip[1], {50: box(SIZE)})
    assert 50 in result.track_ids and np.array_equal(result.masks[result.track_ids.index(50)], box(SIZE))
    assert first.track_ids[row] >= 1 and len(set(result.track_ids)) == len(result.track_ids)


def test_the_driver_needs_no_torch(exported: Path) -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None; import numpy as np; "
    code += "from ausm_d2.export.runner import OnnxStream; s = OnnxStream(sys.argv[1]); "
    code += f"print(s.step(np.zeros(({SIZE[0]}, {SIZE[1]}, 3), np.uint8)).frame_index)"
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_what_does_not_fit_is_refused_and_changes_nothing(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.onnx: not an exported step"):
        OnnxStream(tmp_path / "x.onnx")
    stream = OnnxStream(exported, threads=1)
    frame = frames(1, SIZE)[0]
    for wrong, prompts, message in (
        (frame[:, :20], {}, r"a frame is uint8 \(40, 56, 3\), BGR, .* found uint8 \(40, 20, 3\)"),
        (frame, {0: box(SIZE)}, "object 0: expected an id of 1 or more"),
        (frame, {2: box()}, r"object 2: .* found bool \(32, 32\)"),
        (frame, {i: box(SIZE) for i in range(1, 6)}, "5 new objects do not fit: 4 of 4 ID vectors"),
    ):
        with pytest.raises(UserError, match=message):
            stream.step(wrong, prompts)
    assert stream.frame_index == -1 and not stream.slots.in_use.any()


@pytest.mark.parametrize(("input_size", "size"), [((64, 96), (100, 151)), ((40, 56), (40, 56)), ((40, 90), (31, 70))])
def test_masks_are_enlarged_as_in_the_stream(input_size: tuple[int, int], size: tuple[int, int]) -> None:
    small = [-(-side // 32) * 8 for side in input_size]
    logits = torch.randn(2, *small)
    rows, columns = (_interpolation(4 * s / side, out, s) for s, side, out in zip(small, input_size, size, strict=True))
    expected = upsample_logits(logits, input_size, size).numpy()
    assert np.allclose(rows @ logits.numpy() @ columns.T, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "a.png"], "--mask: only with --check"),
        (["--frames", "0"], "--frames: 0, expected 1 or more"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--label-set", "people"], "no label set 'people'"),
        (["-o", "."], "'.' is a folder; a file expected"),
    ],
)
def test_commands_that_cannot_be_done(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    command = ["export", "-o", str(tmp_path / "x.onnx"), "--config", str(folder / "tiny.yaml"), *arguments]
    with pytest.raises(UserError, match=re.escape(message)):
        main(command)
    assert not list(tmp_path.iterdir())


def test_rules_that_the_driver_does_not_apply_are_named(predictor: VideoPredictor) -> None:
    assert rules_left_out(predictor.settings) == []
    assert rules_left_out(replace(predictor.settings, exclusive=True, min_age=3)) == ["EXCLUSIVE", "MIN_AGE"]


def test_an_export_says_which_rules_it_leaves_out_and_why_it_fails(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("\nno operator\nmore")

    monkeypatch.setattr(torch.onnx, "export", fails)
    monkeypatch.setattr(graph, "rules_left_out", lambda _: ["EXCLUSIVE", "MIN_AGE"])
    with pytest.raises(UserError, match=r"^the step cannot be exported: OnnxExporterError: no operator$"):
        graph.export_step(predictor, SIZE, "object", tmp_path / "a.onnx")
    assert "the exported step does not apply TEST.AUSM keys EXCLUSIVE, MIN_AGE" in caplog.text
    assert not list(tmp_path.iterdir())
