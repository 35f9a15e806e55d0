# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.masks.png import read_labels
from ausm_d2.masks.rle import decode
from ausm_d2.video.movie import MovieWriter
from demo import demo
from tests.new_process import run_python
from tests.tiny import write_tiny_config

SIZE = (50, 70)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose weights are there."""
    return write_tiny_config(tmp_path_factory.mktemp("model"))


def pictures(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Smooth noise, which survives a codec."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 8, 10, 3), np.uint8)
    return [cv2.resize(picture, size[::-1]) for picture in small]


def write_folder(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for name, picture in zip(names, pictures(len(names)), strict=True):
        cv2.imwrite(str(folder / name), picture)
    return folder


def write_video(path: Path, count: int = 6, size: tuple[int, int] = SIZE) -> Path:
    with MovieWriter(path, 25) as video:
        for picture in pictures(count, size):
            video.write(picture)
    return path


def labels(*objects: tuple[int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Squares of 20 pixels: (id, x, y) of each."""
    picture = np.zeros(size, np.uint8)
    for object_id, x, y in objects:
        picture[y : y + 20, x : x + 20] = object_id
    return picture


def write_labels(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(path)
    return path


def run(config: Path, source: Path | str, output: Path, *more: Any) -> str:
    arguments = ["--config-file", config, "--input", source, "--output", output, *more]
    return demo.run(demo.parse_args([str(each) for each in arguments]))


def tracks_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "tracks.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------ what comes out


def test_a_video_without_prompts(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "results"
    summary = run(config, write_video(tmp_path / "a.mp4"), output)
    assert names(tmp_path / "new") == ["results"] and names(output) == ["masks", "overlay.mp4", "tracks.json"]
    assert names(output / "masks") == [f"{i:05d}.png" for i in range(6)]
    with av.open(str(output / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.pix_fmt) == (6, 25, "yuv420p")
        assert stream.height >= 250  # small frames are enlarged
    data = tracks_of(output)
    assert data.keys() == {"version", "complete", "run", "video", "prompted", "tracks"} and data["version"] == 1
    assert data["complete"] is True
    assert data["video"] == {
        "name": "a.mp4",
        "height": SIZE[0],
        "width": SIZE[1],
        "fps": 25.0,
        "frame_names": [f"{i:05d}" for i in range(6)],
        "times": [0.0, 0.04, 0.08, 0.12, 0.16, 0.2],
    }
    assert data["prompted"] is False and data["tracks"]
    assert f"6 frames, {len(data['tracks'])} objects" in summary and str(output) in summary
    union = np.zeros((6, *SIZE), bool)
    for track in data["tracks"]:
        assert track.keys() == {"id", "class", "score", "frames", "scores", "segmentations"}
        assert track["class"] in ("disc", "ring", "square", "triangle", "star", "cross") or track["class"]
        assert 0 < track["score"] <= 1 and track["frames"] == sorted(set(track["frames"]))
        for frame, rle in zip(track["frames"], track["segmentations"], strict=True):
            mask = decode(rle)
            union[frame] |= mask
            shown = read_labels(output / "masks" / f"{frame:05d}.png") == track["id"]
            assert mask.any() and mask[shown].all()
    for i in range(6):
        assert np.array_equal(read_labels(output / "masks" / f"{i:05d}.png") > 0, union[i])


def test_frames_with_prompts(config: Path, tmp_path: Path) -> None:
    frames = write_folder(tmp_path / "frames", ["2.png", "10.png", "1.png"])
    (frames / "notes.txt").write_text("not a frame")
    prompt = write_labels(tmp_path / "first.png", labels((9, 5, 5), (3, 30, 20)))
    output = tmp_path / "results"
    run(config, frames, output, "--prompt-masks", prompt)
    data = tracks_of(output)
    assert data["prompted"] is True and data["video"]["frame_names"] == ["1", "2", "10"]
    assert names(output / "masks") == ["1.png", "10.png", "2.png"]
    assert np.array_equal(read_labels(output / "masks" / "1.png"), labels((9, 5, 5), (3, 30, 20)))
    assert [(track["id"], track["class"]) for track in data["tracks"]] == [(3, "object"), (9, "object")]
    assert all(track["frames"][0] == 0 for track in data["tracks"])
    assert Image.open(output / "masks" / "1.png").mode == "P"


def test_an_image_with_prompts(config: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dog.jpg"), pictures(1)[0])
    prompt = write_labels(tmp_path / "first.png", labels((4, 5, 5)))
    run(config, tmp_path / "dog.jpg", tmp_path / "out", "--prompt-masks", prompt)
    assert names(tmp_path / "out") == ["masks", "overlay.png", "tracks.json"]
    assert np.array_equal(read_labels(tmp_path / "out" / "masks" / "dog.png"), labels((4, 5, 5)))
    assert cv2.imread(str(tmp_path / "out" / "overlay.png")).shape == (7 * 50, 7 * 70, 3)


def test_the_number_of_frames_can_be_limited(config: Path, tmp_path: Path) -> None:
    run(config, write_video(tmp_path / "a.mp4"), tmp_path / "out", "--frames", 2)
    assert names(tmp_path / "out" / "masks") == ["00000.png", "00001.png"]


def test_earlier_results_are_replaced_and_nothing_else_is(config: Path, tmp_path: Path) -> None:
    video, output = write_video(tmp_path / "a.mp4", 3), tmp_path / "out"
    run(config, video, output)
    run(config, video, output, "--frames", 1)
    assert names(output / "masks") == ["00000.png"]
    before = (output / "tracks.json").read_bytes()
    with pytest.raises(UserError):
        run(config, video, output, "--opts", "TEST.AUSM.LABEL_SET", "people")
    assert (output / "tracks.json").read_bytes() == before and names(tmp_path) == ["a.mp4", "out"]
    (output / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"out' holds other things than earlier results \('thesis\.tex'\), not touched"):
        run(config, video, output)
    assert (output / "thesis.tex").exists()


# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("picture", "ids"),
    [
        (labels((1, 5, 5), (2, 30, 5)), [1, 2]),
        (labels((255, 5, 5)), [1]),  # black and white: one object
        (labels((7, 5, 5), (255, 30, 5)), [7]),  # 255 among others: void
        (labels((700 % 256, 5, 5)).astype(np.uint16) * 10, [1880]),  # 16 bits
    ],
)
def test_prompt_masks(tmp_path: Path, picture: np.ndarray, ids: list[int]) -> None:
    prompts = demo.read_prompts(str(write_labels(tmp_path / "first.png", picture)))
    assert list(prompts) == ids
    assert all(np.array_equal(mask, picture == (picture.max() if ids == [1] else i)) for i, mask in prompts.items())


def test_many_real_objects_are_fine(tmp_path: Path) -> None:
    picture = np.arange(1, 31, dtype=np.uint8).reshape(5, 6).repeat(6, 0).repeat(6, 1)
    assert len(demo.read_prompts(str(write_labels(tmp_path / "first.png", picture)))) == 30


def smooth(side: int) -> np.ndarray:
    """A white disc with smoothed edges."""
    picture = np.zeros((side, side), np.uint8)
    cv2.circle(picture, (side // 2, side // 2), side // 3, 255, -1, cv2.LINE_AA)
    return cv2.resize(cv2.resize(picture, None, fx=0.37, fy=0.37, interpolation=cv2.INTER_AREA), (side, side))


@pytest.mark.parametrize("side", [24, 60, 1000])
def test_antialiased_edges_are_refused(tmp_path: Path, side: int) -> None:
    path = write_labels(tmp_path / "first.png", smooth(side))
    with pytest.raises(UserError, match=r"first\.png: \d+ object ids, \d+ of them on hardly any pixels: .*antialiased"):
        demo.read_prompts(str(path))


def test_scattered_values_are_recognised(tmp_path: Path) -> None:
    picture = labels((200, 5, 5))
    picture[40, 1:60:2] = np.arange(1, 31)  # 30 ids on a pixel each
    with pytest.raises(UserError, match="31 object ids, 30 of them on hardly any pixels"):
        demo.read_prompts(str(write_labels(tmp_path / "first.png", picture)))


# ----------------------------------------------------------------------------------------------------------- mistakes


def two_sizes(folder: Path) -> Path:
    write_folder(folder, ["a.png", "b.png"])
    cv2.imwrite(str(folder / "c.png"), pictures(1, (50, 64))[0])
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.mp4", r"'.*none\.mp4' does not exist"),
        (lambda p: two_sizes(p / "f"), r"f: frame 'c': a frame of 64x50 pixels follows frames of 70x50"),
    ],
)
def test_invalid_input_is_refused(config: Path, tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    source = make(tmp_path)
    before = names(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        run(config, source, tmp_path / "out")
    assert "\n" not in str(error.value) and names(tmp_path) == before


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (labels((1, 5, 5), size=(64, 64)), r"first\.png: 64x64 pixels, the first frame of the input is 70x50"),
        (labels(), r"first\.png: the prompt is empty: every pixel is background"),
        (np.stack([labels((1, 5, 5)), labels(), labels()], -1), r"first\.png: a picture in colours \(mode RGB\)"),
        (None, r"first\.png: the mask is missing"),
    ],
)
def test_invalid_prompts_are_refused(config: Path, tmp_path: Path, picture: np.ndarray | None, message: str) -> None:
    video = write_video(tmp_path / "a.mp4", 2)
    if picture is not None:
        write_labels(tmp_path / "first.png", picture)
    before = names(tmp_path)
    with pytest.raises(UserError, match=message):
        run(config, video, tmp_path / "out", "--prompt-masks", tmp_path / "first.png")
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--opts", "MODEL.AUSM.NUM_IDS", "8"], r"NUM_IDS"),
        (["--opts", "MODEL.WEIGHTS", "/nowhere/x.pth"], r"/nowhere/x\.pth' does not exist"),
        (["--opts", "MODEL.WEIGHTS", ""], r"MODEL\.WEIGHTS: empty in '.*tiny\.yaml'"),
        (["--opts", "MODEL.AUSM.HIDDEN_DIM", "16"], r"tiny\.pth"),  # other weights than the model has
        (["--frames", "0"], r"--frames: 0, expected 1 or more"),
        (["--output", "{file}"], r"a\.mp4' is a file; a folder expected"),
        (["--output", "{file}/out"], r"a\.mp4' is a file; a folder expected"),
        (["--output", "{file}/more/out"], r"a\.mp4/more/out' cannot be written: Not a directory"),
        (["--config-file", "none.yaml"], r"config file 'none\.yaml' does not exist"),
    ],
)
def test_invalid_settings_are_refused(config: Path, tmp_path: Path, more: list[str], message: str) -> None:
    video = write_video(tmp_path / "a.mp4", 2)
    with pytest.raises(UserError, match=message):
        run(config, video, tmp_path / "out", *(each.format(file=video) for each in more))
    assert names(tmp_path) == ["a.mp4"]


def test_the_command(new_processes: ForkServerContext, config: Path, tmp_path: Path) -> None:
    """An error: one line on stderr, exit code 1, no files."""
    work, output = tmp_path / "work", tmp_path / "output"
    for folder in (work, output):
        folder.mkdir()
    frames = two_sizes(work / "frames")
    command = [demo.__file__, "--config-file", config, "--input", frames, "--output", work / "out"]
    done = run_python(new_processes, command, output, cwd=work)
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines == [f"error: {frames}: frame 'c': a frame of 64x50 pixels follows frames of 70x50: "
                     "all frames of a video have one size"]  # fmt: skip
    assert names(work) == ["frames"]
