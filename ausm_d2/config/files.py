# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Finds config files, including packaged ones, and loads them with their ``_BASE_`` files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from ausm_d2.config.defaults import add_ausm_config
from ausm_d2.errors import UserError
from ausm_d2.io import read_yaml

PACKAGED = Path(__file__).resolve().parents[1] / "configs"  # in a checkout, a link to configs/
PRETRAINED = {"ausm_edge": "edge/ausm_edge.yaml", "ausm_nano": "synth/ausm_nano.yaml"}
"""Configs of the models whose weights are shipped with the package."""

_BASE = "_BASE_"
_STYLES = ("YTVIS_STYLE", "DAVIS_STYLE", "COCO_STYLE", "MASKED_IMAGES")  # the user's own data sets


def load_config(config_file: str, opts: Sequence[Any] = (), overlays: Sequence[str] = ()) -> CfgNode:
    """Load a complete config from a YAML file and ``KEY VALUE`` pairs.

    Args:
        config_file: path of a YAML file, or of a packaged config relative to their folder, such as
            ``edge/ausm_edge.yaml``. Its ``_BASE_`` is relative to its own folder or to that of the packaged configs.
            ``MODEL.WEIGHTS`` and paths of ``DATASETS`` that begin with ``./`` are files beside it, if they are there:
            such a folder can be moved.
        opts: alternating keys and values, as on the command line. Data sets of ``DATASETS.LEAVE_OUT`` are then removed
            from ``DATASETS.TRAIN``.
        overlays: further files, such as ``paper/letter.yaml``, merged in this order after ``config_file``; ``opts`` are
            merged last. On a CPU, a file's SOLVER.AMP is off.

    Raises:
        UserError: if a file is missing or not a YAML mapping, a key is unknown or its value has the wrong type,
            MODEL.DEVICE is unavailable, ``opts`` ask for SOLVER.AMP on a CPU, or a list of DATASETS.TRAIN's length has
            another one.
    """
    cfg = get_cfg()
    add_ausm_config(cfg)
    for file in (config_file, *overlays):
        _merge_file(cfg, _find(file, Path()), ())
    _merge(cfg, "command line", lambda: cfg.merge_from_list(list(opts)))
    _leave_out(cfg)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", cfg.MODEL.DEVICE):
        raise UserError(f"MODEL.DEVICE: '{cfg.MODEL.DEVICE}', expected cpu, cuda or the number of a GPU as in cuda:1")
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda"):
        if "MODEL.DEVICE" in opts:
            raise UserError(f"MODEL.DEVICE: '{cfg.MODEL.DEVICE}', but PyTorch finds no GPU; expected cpu")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        if "SOLVER.AMP.ENABLED" in opts and cfg.SOLVER.AMP.ENABLED:
            raise UserError("SOLVER.AMP.ENABLED: True needs a GPU; MODEL.DEVICE is cpu")
        cfg.SOLVER.AMP.ENABLED = False  # Detectron2's AMP is for CUDA only
    return cfg


_PER_DATA_SET = (  # keys with one number per data set of DATASETS.TRAIN, or none
    ("DATASETS", "DATASET_RATIO"),
    ("INPUT", "SAMPLING_FRAME_RANGES"),
    ("INPUT", "SAMPLING_FRAME_NUMS"),
)


def _leave_out(cfg: CfgNode) -> None:
    """Remove the data sets of DATASETS.LEAVE_OUT from DATASETS.TRAIN, with their ratios and ranges."""
    names = list(cfg.DATASETS.TRAIN)
    kept = [i for i, name in enumerate(names) if name not in cfg.DATASETS.LEAVE_OUT]
    if len(kept) == len(names):
        return
    for section, key in _PER_DATA_SET:
        values = list(cfg[section][key])
        if values and len(values) != len(names):
            raise UserError(f"{section}.{key}: {len(values)} numbers for the {len(names)} data sets of DATASETS.TRAIN")
        cfg[section][key] = [values[i] for i in kept] if values else []
    cfg.DATASETS.TRAIN = tuple(names[i] for i in kept)


def with_data_set(cfg: CfgNode, name: str) -> CfgNode:
    """A copy of a config whose training data are one data set, with the settings that hold for all."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)
    for section, key in _PER_DATA_SET:
        cfg[section][key] = []
    return cfg


def pretrained_config(name: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a shipped model (a key of ``PRETRAINED``).

    Args:
        opts: alternating keys and values.

    Raises:
        UserError: if the name is unknown; also as :func:`load_config`.
    """
    if name not in PRETRAINED:
        raise UserError(f"there is no pretrained model '{name}', expected one of {', '.join(sorted(PRETRAINED))}")
    return load_config(str(PACKAGED / PRETRAINED[name]), opts)


def _find(config_file: str, folder: Path, named_in: Path | None = None) -> Path:
    """Find a config file, relative to ``folder`` or to the folder of the packaged configs.

    Args:
        named_in: the file that has it as its ``_BASE_``.

    Raises:
        UserError: if there is no such file.
    """
    if not config_file:
        raise UserError("config file: none given, expected the path of a YAML file (--config-file)")
    path = folder / Path(config_file).expanduser()
    if path.is_file():
        return path
    packaged = PACKAGED / config_file  # joining with an absolute path gives that path
    if packaged.is_file():
        return packaged
    where = f"{named_in}: {_BASE}: " if named_in else ""
    if path.is_dir():
        raise UserError(f"{where}config file '{config_file}' is a folder, expected a YAML file")
    raise UserError(
        f"{where}config file '{config_file}' does not exist; looked in {folder.resolve()} and, for the packaged "
        f"configs, in {PACKAGED}"
    )


def _merge_file(cfg: CfgNode, path: Path, above: tuple[Path, ...]) -> None:
    """Merge a file into a config, after its ``_BASE_`` files.

    Args:
        above: the chain of files that led here through ``_BASE_``.
    """
    if path.resolve() in above:
        raise UserError(f"{path}: {_BASE}: the file is based on itself")
    keys = _read(path)
    bases = keys.pop(_BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {_BASE}: {bases!r}, expected the path of a YAML file, or a list of them")
    for base in bases:
        _merge_file(cfg, _find(base, path.parent, path), (*above, path.resolve()))
    version = keys.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise UserError(f"{path}: VERSION: {version!r}, expected {cfg.VERSION}")
    _check_sections(cfg, keys, path)
    _find_beside(keys, path.parent.resolve())
    _merge(cfg, str(path), lambda: cfg.merge_from_other_cfg(CfgNode(keys)))


def _read(path: Path) -> dict[str, Any]:
    """Read the keys of a config file.

    Raises:
        UserError: if it is not a YAML mapping.
    """
    if path.suffix == ".py":
        raise UserError(f"{path}: a Python file (Detectron2's LazyConfig), expected a YAML file")
    keys = read_yaml(path)
    if keys is None:
        raise UserError(f"{path}: the file is empty, expected YAML with keys of the config")
    if not isinstance(keys, dict):
        raise UserError(f"{path}: holds a {type(keys).__name__}, expected a YAML mapping with keys of the config")
    return keys


def _check_sections(cfg: CfgNode, keys: dict[Any, Any], path: Path, section: str = "") -> None:
    """Refuse keys without a value, which yacs accepts silently, and values in place of a section, which it reports at
    great length.

    Args:
        cfg: the config, or one of its sections.
        keys: the file's keys for it.
        section: name of the section with a trailing dot.
    """
    for key, value in keys.items():
        where = f"{path}: {section}{key}"
        if not isinstance(key, str):
            raise UserError(f"{where}: a {type(key).__name__}, expected the name of a key")
        known = cfg.get(key)
        if isinstance(known, CfgNode) and not isinstance(value, dict):
            raise UserError(f"{where}: {'empty' if value is None else repr(value)}, expected the keys of a section")
        if known is not None and value is None:
            raise UserError(f"{where}: empty, expected a value such as {known!r}")
        if isinstance(known, CfgNode):
            _check_sections(known, value, path, f"{section}{key}.")


def _find_beside(keys: dict[str, Any], folder: Path) -> None:
    """Make the paths of files absolute (in place) that begin with ``./`` and are in ``folder``."""

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(each) for each in value]
        beside = isinstance(value, str) and value.startswith("./") and (folder / value).exists()
        return str(folder / value) if beside else value

    for section, names in (("MODEL", ("WEIGHTS",)), ("DATASETS", _STYLES)):
        for name in names:
            if name in keys.get(section, {}):
                keys[section][name] = found(keys[section][name])


def _merge(cfg: CfgNode, where: str, merge: Callable[[], Any]) -> None:
    """Call ``merge``; report its exceptions as one line that begins with ``where``."""
    try:
        merge()
    except Exception as error:  # yacs and fvcore raise various exceptions
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"{where}: {text}") from error
