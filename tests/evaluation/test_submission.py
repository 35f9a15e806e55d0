# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation import writers
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission import archive
from ausm_d2.evaluation.submission.base import DataSet, Files, Member
from ausm_d2.masks.rle import encode
from tests.data.stubs import ArrayFrames

HEIGHT, WIDTH, LENGTH = 6, 8, 4
TYPES = ("ytvis", "vos", "ytvos", "sav", "coco")


def mask(left: int) -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), bool)
    ids[1:4, left : left + 3] = True
    return ids


def record(video_id: int, length: int) -> VideoRecord:
    return VideoRecord(
        video_id=video_id,
        name=f"v{video_id}",
        height=HEIGHT,
        width=WIDTH,
        frames=ArrayFrames([np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * length),
        prompt_frames={0: 0, 3: 1},
    )


@pytest.fixture(autouse=True)
def _data_sets() -> Iterator[None]:
    for kind in TYPES:
        records = [record(video_id, 1 if kind == "coco" else LENGTH) for video_id in (10, 20)]
        for each in records:
            if kind == "ytvos":
                each.prompt_frames, each.extra["scored_frames"] = {1: 0, 3: 1}, [0, 1, 3]
            if kind == "vos":
                each.prompt_frames = {1: 0, 3: 1}
            if kind == "sav":
                each.labelled = [True, False, True, False]
        DatasetCatalog.register(f"write_{kind}", lambda records=records: records)
        MetadataCatalog.get(f"write_{kind}").set(
            evaluator_type=kind,
            task={"ytvis": "vis", "coco": "image"}.get(kind, "vos"),
            thing_classes=["a", "b"],
            thing_dataset_id_to_contiguous_id={4: 0, 7: 1},
        )
    yield
    for kind in TYPES:
        DatasetCatalog.remove(f"write_{kind}")
        MetadataCatalog.remove(f"write_{kind}")


def results_of(kind: str, folder: Path) -> ResultFolder:
    """Two partly overlapping tracks in every video; the first one has two classes."""
    results = ResultFolder(folder)
    for each in DatasetCatalog.get(f"write_{kind}"):
        first = [encode(mask(0))] * each.length
        second = [None, *[encode(mask(2))] * (each.length - 1)] if each.length > 1 else [encode(mask(2))]
        output: dict[str, Any] = {"video_id": each.video_id}
        if kind in ("ytvis", "coco"):
            output["tracks"] = [
                {"track_id": 0, "category_id": 0, "score": 0.5, "segmentations": first},
                {"track_id": 0, "category_id": 1, "score": 0.75, "segmentations": first},
                {"track_id": 5, "category_id": 1, "score": 0.25, "segmentations": second},
            ]
        else:
            output["objects"] = {
                str(object_id): m for object_id, m in zip(each.prompt_frames, (first, second), strict=True)
            }
        results.write(each, json.dumps(output))
    return results


def write(kind: str, path: Path, form: str = "") -> Path:
    results = results_of(kind, path.parent / "videos")
    options = ["--dataset", f"write_{kind}", *(["--format", form] if form else [])]
    assert writers.main(["write", str(results.folder), str(path), *options]) == 0
    return path


def picture(files: Files, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(files.read(name))))


def test_written_submissions_pass_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in TYPES:
        path = write(kind, tmp_path / kind / "submission.zip")
        assert archive.check(path, f"write_{kind}") == []
        assert writers.main(["check", str(path), "--dataset", f"write_{kind}"]) == 0
        assert f"can be submitted for write_{kind}" in capsys.readouterr().out
    for kind in ("vos", "sav"):
        assert archive.check(write(kind, tmp_path / kind / "tree"), f"write_{kind}") == []
    for kind in ("vos", "ytvis"):
        assert archive.check(write(kind, tmp_path / kind / "mot.zip", "mot"), f"write_{kind}", "mot") == []


def test_youtube_vis(tmp_path: Path) -> None:
    files = Files(write("ytvis", tmp_path / "a.zip"))
    assert files.names == ["results.json"]
    entries = json.loads(files.read("results.json"))
    assert [(entry["video_id"], entry["category_id"], entry["score"]) for entry in entries] == [
        *((10, 4, 0.5), (10, 7, 0.75), (10, 7, 0.25)),
        *((20, 4, 0.5), (20, 7, 0.75), (20, 7, 0.25)),
    ]
    assert set(entries[0]) == {"video_id", "category_id", "score", "segmentations"}
    assert [m is None for m in entries[2]["segmentations"]] == [True, False, False, False]
    assert json.loads(write("ytvis", tmp_path / "results.json").read_text()) == entries


def test_coco(tmp_path: Path) -> None:
    files = Files(write("coco", tmp_path / "a.zip"))
    assert files.names == ["detections_write_coco_ausm_results.json"]
    entry = json.loads(files.read(files.names[0]))[0]
    assert entry == {"image_id": 10, "category_id": 4, "score": 0.5, "segmentation": encode(mask(0))}


def test_trees(tmp_path: Path) -> None:
    expected = mask(0).astype(int)
    expected[mask(2)] = 3
    for kind, top, frames in (("vos", "", (0, 1, 2, 3)), ("ytvos", "Annotations/", (0, 1, 3))):
        files = Files(write(kind, tmp_path / f"{kind}.zip"))
        assert files.names == [f"{top}v{video}/{frame:05d}.png" for video in (10, 20) for frame in frames]
        assert np.array_equal(picture(files, files.names[0]), mask(0))
        assert np.array_equal(picture(files, files.names[1]), expected)


def test_objects_of_sa_v_overlap(tmp_path: Path) -> None:
    """Labelled frames only, and an object from its prompt on; object 0 is one."""
    files = Files(write("sav", tmp_path / "tree"))
    of_one = ["000/00000.png", "000/00002.png", "003/00002.png"]
    assert files.names == [f"{video}/{name}" for video in ("v10", "v20") for name in of_one]
    assert np.array_equal(picture(files, "v10/000/00002.png") > 0, mask(0))
    assert np.array_equal(picture(files, "v10/003/00002.png") > 0, mask(2))


def test_mot(tmp_path: Path) -> None:
    files = Files(write("ytvis", tmp_path / "a.zip", "mot"))
    assert files.names == ["v10.txt", "v20.txt"]
    lines = files.read("v10.txt").decode().splitlines()
    # A track once, with its best score; ids, frames and pixels from 1.
    assert lines[:3] == ["1,1,1,2,3,3,0.75,-1,-1,-1", "2,1,1,2,3,3,0.75,-1,-1,-1", "2,6,3,2,3,3,0.25,-1,-1,-1"]
    assert len(lines) == 7
    # A user's ids stay what they are, if MOTChallenge can have them.
    lines = Files(write("vos", tmp_path / "b.zip", "mot")).read("v10.txt").decode().splitlines()
    assert {line.split(",")[1] for line in lines} == {"1", "3"}


def test_a_failed_submission_leaves_no_file(tmp_path: Path) -> None:
    results = results_of("vos", tmp_path / "videos")
    records = DatasetCatalog.get("write_vos")
    results.path(records[1]).write_text("{}")
    data = DataSet.of("write_vos", records)

    def members() -> Iterator[Member]:
        yield from list(archive.FORMATS["vos"].members(data, results))[:3]
        raise KeyboardInterrupt

    for name in ("a.zip", "tree"):
        with pytest.raises(KeyboardInterrupt):
            archive.write(tmp_path / name, members())
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
    (tmp_path / "mine/thing").mkdir(parents=True)
    with pytest.raises(UserError, match="mine: exists already"):
        archive.write(tmp_path / "mine", [])
    results.path(records[1]).unlink()
    with pytest.raises(UserError, match="1 videos have no result, the first of them v20"):
        writers.main(["write", str(results.folder), str(tmp_path / "b.zip"), "--dataset", "write_vos"])


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


VIS_ENTRY = {"video_id": 10, "category_id": 4, "score": 0.5, "segmentations": [None, None, None, encode(mask(0))]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"video_id": 11}, "field 'video_id': 11 is not in write_ytvis"),
        ({"category_id": 0}, "field 'category_id': 0 is no category of write_ytvis"),
        ({"score": "0.5"}, "field 'score': '0.5' found, a finite number expected"),
        ({"score": float("inf")}, "field 'score': inf found, a finite number expected"),
        ({"score": 10**400}, f"field 'score': 1{'0' * 39} found, a finite number expected"),
        ({"video_id": [10]}, "field 'video_id': [10] is not in write_ytvis"),
        ({"category_id": [4]}, "field 'category_id': [4] is no category of write_ytvis"),
        ({"segmentations": None}, "field 'segmentations': NoneType found, a list of 4 expected, one for each frame"),
        (
            {"segmentations": [{"size": [6, 8], "counts": "\ud800"}, None, None, None]},
            "mask of frame 0: counts do not describe 6x8 pixels",
        ),
        ({"segmentations": [None] * 3}, "field 'segmentations': 3 found, a list of 4 expected, one for each frame"),
        (
            {"segmentations": [None, None, {"size": [6, 8], "counts": [40, 8]}, None]},
            "mask of frame 2: expected null or compressed run lengths (size, counts as text)",
        ),
        (
            {"segmentations": [encode(mask(0).T)] * 4},
            "mask of frame 0: size [8, 6], expected [6, 8] (height, width of the video)",
        ),
        (
            {"segmentations": [None, {"size": [6, 8], "counts": "5"}, None, None]},
            "mask of frame 1: counts do not describe 6x8 pixels",
        ),
    ],
)
def test_entries_that_a_server_refuses(tmp_path: Path, change: dict[str, Any], problem: str | None) -> None:
    content = json.dumps([VIS_ENTRY, {**VIS_ENTRY, **change}]).encode()
    path = zipped(tmp_path / "a.zip", {"results.json": content})
    expected = [] if problem is None else [f"results.json: entry 1: {problem}"]
    assert archive.check(path, "write_ytvis") == expected


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        ({"sub/results.json": b"[]"}, ["sub/results.json: unexpected file", "expected one results.json at its root"]),
        ({"results.json": b"[1,"}, ["results.json: not a JSON file: Expecting value: line 1 column 4 (char 3)"]),
        ({"results.json": b"[" * 100000}, ["results.json: nested too deeply"]),
        ({"results.json": b"[]"}, ["results.json: expected a list of results that is not empty"]),
        ({"results.json": b"[1]"}, ["results.json: entry 0: int found, an object with fields expected"]),
    ],
)
def test_files_that_a_server_refuses(tmp_path: Path, files: dict[str, bytes], problems: list[str]) -> None:
    assert archive.check(zipped(tmp_path / "a.zip", files), "write_ytvis") == problems


def test_a_file_that_is_not_a_zip_is_refused(tmp_path: Path) -> None:
    path = write("ytvis", tmp_path / "results.json")
    assert archive.check(path, "write_ytvis") == ["not a zip: servers take a zip with results.json at its root"]
    with pytest.raises(UserError, match=r"none\.zip: no such file or folder"):
        archive.check(tmp_path / "none.zip", "write_ytvis")


@pytest.mark.parametrize("kind", ["ytvis", "vos"])
def test_a_zip_that_is_damaged(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[60:90] = b"?" * 30  # in the first file
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: .* in it cannot be read: "):
        archive.check(path, f"write_{kind}")


def png(ids: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("v20/00003.png", png(mask(0) * 2), "v20/00003.png: value 2 is no object of the video"),
        ("v20/00003.png", png(mask(0).T), "v20/00003.png: 6x8 pixels, expected 8x6"),
        ("v20/00003.png", b"text", "v20/00003.png: the mask cannot be decoded: it is no picture, or broken"),
        ("v20/00003.png", None, "v20/00003.png: missing"),
        ("v20/00004.png", png(mask(0)), "v20/00004.png: unexpected file"),
        ("v30/00000.png", png(mask(0)), "v30/00000.png: unexpected file"),
        ("__MACOSX/v20/._00000.png", b"", "__MACOSX/v20/._00000.png: unexpected file"),
    ],
)
def test_trees_that_a_server_refuses(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    files = Files(write("vos", tmp_path / "a.zip"))
    contents: dict[str, Any] = {each: files.read(each) for each in files.names}
    contents[name] = content
    changed = {each: value for each, value in contents.items() if value is not None}
    assert archive.check(zipped(tmp_path / "b.zip", changed), "write_vos") == [problem]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"image_id": 11}, "field 'image_id': 11 is not in write_coco"),
        ({"category_id": 1}, "field 'category_id': 1 is no category of write_coco"),
        ({"segmentation": None}, "field 'segmentation': None found, a mask expected"),
        ({"segmentation": [[1, 1, 4, 1, 4, 4]]}, "mask of frame 0: expected null or compressed run lengths (size,"),
    ],
)
def test_coco_entries_that_a_server_refuses(tmp_path: Path, change: dict[str, Any], problem: str | None) -> None:
    entry = {"image_id": 10, "category_id": 4, "score": 0.5, "segmentation": encode(mask(0)), **change}
    name = "detections_val2017_mine_results.json"
    found = archive.check(zipped(tmp_path / "a.zip", {name: json.dumps([entry]).encode()}), "write_coco")
    assert not found if problem is None else len(found) == 1 and found[0].startswith(f"{name}: entry 0: {problem}")


def test_object_folders_that_a_server_refuses(tmp_path: Path) -> None:
    """SA-V: one object per image, with any value."""
    files = Files(write("sav", tmp_path / "a.zip"))
    contents = {name: files.read(name) for name in files.names}
    contents["v10/003/00002.png"] = png(mask(0) * 255)
    assert archive.check(zipped(tmp_path / "b.zip", contents), "write_sav") == []
    contents["v10/003/00002.png"] = png(mask(0) * 1 + mask(4) * 2)
    contents["v20/3/00002.png"] = contents.pop("v20/003/00002.png")
    assert archive.check(zipped(tmp_path / "c.zip", contents), "write_sav") == [
        "v10/003/00002.png: values [0, 1, 2], expected one object in black and white",
        "v20/003/00002.png: missing",
        "v20/3/00002.png: unexpected file",
    ]


def test_a_superfluous_or_missing_top_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, other, message in (
        ("vos", "ytvos", "at its root: Annotations found; expected <video>/..."),
        ("ytvos", "vos", "at its root: v10, v20 found; expected Annotations/..."),
    ):
        path = write(other, tmp_path / f"{other}.zip")
        assert message in archive.check(path, f"write_{kind}")
        assert writers.main(["check", str(path), "--dataset", f"write_{kind}"]) == 1
        assert "missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,1,0,0,3,3,0.5,-1,-1", "'1,1,0,0,3,3,0.5,-1,-1' found, ten numbers with commas expected"),
        ("5,1,0,0,3,3,0.5,-1,-1,-1", "frame 5, expected 1 to 4"),
        ("1,0,0,0,3,3,0.5,-1,-1,-1", "id 0, expected a whole number from 1"),
        ("2,1,0,0,3,3,0.5,-1,-1,-1", "id 1 is in frame 2 already (line 1)"),
    ],
)
def test_mot_lines_that_a_server_refuses(tmp_path: Path, line: str, problem: str) -> None:
    text = f"2,1,1,1,3,3,1,-1,-1,-1\n{line}\n"
    path = zipped(tmp_path / "a.zip", {"v10.txt": text.encode(), "v20.txt": b""})
    assert archive.check(path, "write_ytvis", "mot") == [f"v10.txt, line 2: {problem}"]


def test_a_users_data_set_is_registered_from_the_config(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder / "v").mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / "v" / f"{frame}.png")
    config = tmp_path / "own.yaml"
    folders = [str(tmp_path / folder) for folder in ("images", "masks")]
    config.write_text(json.dumps({"DATASETS": {"DAVIS_STYLE": [["own_written_val", *folders]]}, "VERSION": 2}))
    arguments = ["check", str(tmp_path / "masks"), "--dataset", "own_written_val"]
    with pytest.raises(UserError, match="'own_written_val' is not known"):
        writers.main(arguments)
    assert writers.main([*arguments, "--config-file", str(config)]) == 0


def test_two_videos_with_one_name_are_an_error(tmp_path: Path) -> None:
    results = results_of("vos", tmp_path / "videos")
    for each in DatasetCatalog.get("write_vos"):
        each.name = "img1"
    for name in ("a.zip", "tree"):
        with pytest.raises(UserError, match=rf"{name}: two videos would be written to 'img1\.txt'"):
            writers.main(
                ["write", str(results.folder), str(tmp_path / name), "--dataset", "write_vos", "--format", "mot"]
            )
        assert not (tmp_path / name).exists()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive_file, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive_file.writestr("img1.txt", "")
    found = archive.check(tmp_path / "b.zip", "write_vos", "mot")
    assert found[0].startswith("write_vos has 2 videos of the name 'img1'") and "img1.txt: in the zip 2 times" in found


def test_paths_that_leave_the_submission_are_refused(tmp_path: Path) -> None:
    for name in ("../v.txt", "/v.txt", "a/../../v.txt"):
        with pytest.raises(UserError, match="would lie outside of the submission"):
            archive.write(tmp_path / "a.zip", [(name, [b""])])
    assert not list(tmp_path.iterdir())


def test_a_submission_behind_links_is_checked(tmp_path: Path) -> None:
    folder = write("vos", tmp_path / "tree")
    (tmp_path / "disk").mkdir()
    (folder / "v10").rename(tmp_path / "disk/v10")
    (folder / "v10").symlink_to(tmp_path / "disk/v10")
    assert archive.check(folder, "write_vos") == []
    (folder / "v10/loop").symlink_to(folder)
    assert archive.check(folder, "write_vos") == []
