# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from ausm_d2.config import PRETRAINED, add_ausm_config, load_config, pretrained_config
from ausm_d2.config.files import PACKAGED
from ausm_d2.errors import UserError


def test_packaged_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("edge/ausm_edge.yaml", str(PACKAGED / "edge" / "ausm_edge.yaml")):
        assert load_config(name).MODEL.WEIGHTS == "ausm://ausm_edge.pth"


def test_a_file_at_the_given_path_has_precedence_over_a_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edge").mkdir()
    Path("edge/ausm_edge.yaml").write_text("SEED: 77\n")
    assert load_config("edge/ausm_edge.yaml").SEED == 77


def test_a_users_config_can_be_based_on_a_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("_BASE_: edge/ausm_edge.yaml\nSEED: 77\n")
    (tmp_path / "next.yaml").write_text("_BASE_: [mine.yaml]\nOUTPUT_DIR: next\n")
    cfg, packaged = load_config(str(tmp_path / "next.yaml")), load_config("edge/ausm_edge.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (77, "next")
    assert cfg.MODEL == packaged.MODEL


@pytest.mark.parametrize("path", sorted(PACKAGED.rglob("*.yaml")), ids=lambda path: str(path.relative_to(PACKAGED)))
def test_files_are_merged_as_detectron2_merges_them(path: Path) -> None:
    """Also for users who call Detectron2's ``cfg.merge_from_file`` themselves."""
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    other = get_cfg()
    add_ausm_config(other)
    other.merge_from_file(str(path))
    other.MODEL.DEVICE, other.SOLVER.AMP.ENABLED = "cpu", False
    assert cfg == other


def test_data_sets_that_are_left_out_go_with_their_ratio_and_range(tmp_path: Path) -> None:
    keys = "DATASETS: {TRAIN: [a, b, c], DATASET_RATIO: [1.0, 2.0, 3.0]}\n"
    keys += "INPUT: {SAMPLING_FRAME_RANGES: [4, 5, 6], SAMPLING_FRAME_NUMS: [1, 2, 3]}\n"
    (tmp_path / "three.yaml").write_text(keys)
    cfg = load_config(str(tmp_path / "three.yaml"), ["DATASETS.LEAVE_OUT", ["b", "z"]])
    assert list(cfg.DATASETS.TRAIN) == ["a", "c"]
    assert (cfg.DATASETS.DATASET_RATIO, cfg.INPUT.SAMPLING_FRAME_RANGES) == ([1.0, 3.0], [4, 6])
    assert cfg.INPUT.SAMPLING_FRAME_NUMS == [1, 3]
    (tmp_path / "again.yaml").write_text(cfg.dump())  # as OUTPUT_DIR/config.yaml
    again = load_config(str(tmp_path / "again.yaml"))
    assert list(again.DATASETS.TRAIN) == ["a", "c"] and again.DATASETS.DATASET_RATIO == [1.0, 3.0]
    opts = ["DATASETS.LEAVE_OUT", ["a"], "DATASETS.DATASET_RATIO", [1.0, 2.0]]
    with pytest.raises(UserError, match=r"DATASETS\.DATASET_RATIO: 2 numbers for the 3 data sets of DATASETS\.TRAIN"):
        load_config(str(tmp_path / "three.yaml"), opts)


def test_pretrained_models_by_name() -> None:
    cfg = pretrained_config("ausm_nano", ["SEED", 5])
    assert (cfg.MODEL.WEIGHTS, cfg.SEED) == ("ausm://ausm_nano.pth", 5)
    with pytest.raises(UserError, match="no pretrained model 'ausm_huge', expected one of ausm_edge, ausm_nano"):
        pretrained_config("ausm_huge")
    assert sorted(PRETRAINED) == ["ausm_edge", "ausm_nano"]


# Lines of twelve aliases each: 12^20 values.
_NAMES = "xyzabcdefghi"
_BOMB = b"SEED: &l0 1\n" + b"".join(
    f"K{i}: &l{i} {{{', '.join(f'{name}: *l{i - 1}' for name in _NAMES)}}}\n".encode() for i in range(1, 20)
)

FILES = {
    "": (None, "config file: none given, expected the path of a YAML file"),
    "missing.yaml": (None, "config file 'missing.yaml' does not exist; looked in {cwd} and, for the packaged configs"),
    "folder": ("", "config file 'folder' is a folder, expected a YAML file"),
    "empty.yaml": (b"", "empty.yaml: the file is empty, expected YAML with keys of the config"),
    "comment.yaml": (b"# later\n", "comment.yaml: the file is empty"),
    "list.yaml": (b"- a\n", "list.yaml: holds a list, expected a YAML mapping"),
    "text.yaml": (b"model\n", "text.yaml: holds a str, expected a YAML mapping"),
    "numbers.yaml": (b"MODEL: {1: 2}\n", "numbers.yaml: MODEL.1: a int, expected the name of a key"),
    "no_value.yaml": (b"DATASETS:\n  TEST:\n", "no_value.yaml: DATASETS.TEST: empty, expected a value such as ()"),
    "no_section.yaml": (b"MODEL:\nDATASETS: {}\n", "no_section.yaml: MODEL: empty, expected the keys of a section"),
    "value_of_section.yaml": (b"MODEL: 3\n", "value_of_section.yaml: MODEL: 3, expected the keys of a section"),
    "binary.yaml": (b"\x89PNG\r\n\x1a\n\x00", "binary.yaml: not a YAML file: not UTF-8 text (byte 0)"),
    "zeros.yaml": (b"\x00\x00\x00\x00", "zeros.yaml: not a YAML file: unacceptable character #x0000"),
    "latin1.yaml": ("# caf\xe9\n".encode("latin1"), "latin1.yaml: not a YAML file: not UTF-8 text (byte 5)"),
    "lazy.py": (b"model = None\n", "lazy.py: a Python file (Detectron2's LazyConfig), expected a YAML file"),
    "broken.yaml": (
        b"VERSION: 2\nMODEL: [\n",
        "broken.yaml: not a YAML file that can be used: did not find expected node content",
    ),
    "date.yaml": (b"SEED: 2026-13-45\n", "date.yaml: not a YAML file that can be used: month must be in 1..12"),
    "twice.yaml": (
        b"SEED: 1\nSEED: 2\n",
        "twice.yaml: not a YAML file that can be used: the key 'SEED' twice in line 2",
    ),
    "deep.yaml": (b"[" * 1_000_000, "deep.yaml: not read: nested too deeply"),
    "run.yaml": (
        b"SEED: !!python/object/apply:os.getpid []\n",
        "run.yaml: not a YAML file that can be used: could not",
    ),
    "name.yaml": (b"SEED: !!python/name:os.getpid\n", "name.yaml: not a YAML file that can be used: could not"),
    "tag.yaml": (b"SEED: !seed 3\n", "tag.yaml: not a YAML file that can be used: could not determine a constructor"),
    "bomb.yaml": (_BOMB, "bomb.yaml: not a YAML file that can be used: more than 100000 values in line 6"),
    "lists.yaml": (
        re.sub(rb"\w: \*", b"*", _BOMB.replace(b"{", b"[").replace(b"}", b"]")),
        "lists.yaml: not a YAML file that can be used: more than 100000 values in line 6",
    ),
    "itself.yaml": (
        b"MODEL: &m {AUSM: *m}\n",
        "itself.yaml: not a YAML file that can be used: an alias of what it is a part of in line 1",
    ),
    "old.yaml": (b"VERSION: 1\n", "old.yaml: VERSION: 1, expected 2"),
    "unknown.yaml": (b"MODEL: {AUSM: {NUM_IDS: 3}}\n", "unknown.yaml: Non-existent config key: MODEL.AUSM.NUM_IDS"),
    "type.yaml": (b"SEED: [1]\n", "type.yaml: Type mismatch"),
    "base_missing.yaml": (
        b"_BASE_: not_there.yaml\n",
        "base_missing.yaml: _BASE_: config file 'not_there.yaml' does not",
    ),
    "base_is_folder.yaml": (b"_BASE_: .\n", "base_is_folder.yaml: _BASE_: config file '.' is a folder"),
    "base_is_number.yaml": (b"_BASE_: 3\n", "base_is_number.yaml: _BASE_: 3, expected the path of a YAML file"),
    "base_of_numbers.yaml": (b"_BASE_: [3]\n", "base_of_numbers.yaml: _BASE_: [3], expected the path of a YAML file"),
    "base_is_itself.yaml": (
        b"_BASE_: base_is_itself.yaml\n",
        "base_is_itself.yaml: _BASE_: the file is based on itself",
    ),
    "base_is_broken.yaml": (b"_BASE_: base.yaml\n", "base.yaml: the file is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_configs_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").touch()
    content, message = FILES[name]
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        Path(name).mkdir()
    with pytest.raises(UserError) as caught:
        load_config(name)
    text = str(caught.value)
    assert text.startswith(message.format(cwd=tmp_path)) and "\n" not in text


def test_a_mismatched_value_on_the_command_line_is_refused() -> None:
    with pytest.raises(UserError, match=r"^command line: .*SEEDS"):
        load_config("edge/ausm_edge.yaml", ["SEEDS", 1])


def test_mixed_precision_is_left_to_gpus(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("MODEL: {DEVICE: cpu}\nSOLVER: {AMP: {ENABLED: True}}\n")
    assert not load_config(str(config)).SOLVER.AMP.ENABLED
    with pytest.raises(UserError, match=r"SOLVER\.AMP\.ENABLED: True needs a GPU"):
        load_config(str(config), ["SOLVER.AMP.ENABLED", True])


def test_a_requested_gpu_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\n")
    assert load_config(str(config)).MODEL.DEVICE == "cpu"  # Detectron2's default is cuda
    with pytest.raises(UserError, match=r"MODEL\.DEVICE: 'cuda', but PyTorch finds no GPU"):
        load_config(str(config), ["MODEL.DEVICE", "cuda"])


@pytest.mark.parametrize("device", ["gpu", "", "mps", "meta", "cuda:", "cuda:x", "cpu0"])
def test_invalid_devices_are_refused(device: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\n")
    with pytest.raises(UserError, match=rf"^MODEL\.DEVICE: '{device}', expected cpu, cuda or"):
        load_config(str(config), ["MODEL.DEVICE", device])


def test_files_beside_a_config_are_found_wherever_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    (folder / "labels").mkdir(parents=True)
    (folder / "m.pth").touch()
    (folder / "labels" / "a.json").touch()
    keys = "MODEL: {WEIGHTS: ./m.pth}\nDATASETS: {COCO_STYLE: [[a_train, ./labels/a.json, ./none, own, true]]}"
    (folder / "base.yaml").write_text(f"_BASE_: edge/ausm_edge.yaml\n{keys}\n")
    (tmp_path / "top.yaml").write_text("_BASE_: model/base.yaml\n")
    monkeypatch.chdir(tmp_path)
    for file in ("model/base.yaml", "top.yaml"):
        cfg = load_config(file)
        assert str(folder / "m.pth") == cfg.MODEL.WEIGHTS
        assert list(cfg.DATASETS.COCO_STYLE[0]) == ["a_train", str(folder / "labels/a.json"), "./none", "own", True]
    (tmp_path / "n.yaml").write_text("_BASE_: edge/ausm_edge.yaml\nMODEL: {WEIGHTS: ./nothing.pth}\n")
    assert load_config("n.yaml").MODEL.WEIGHTS == "./nothing.pth", "as Detectron2 has it"
