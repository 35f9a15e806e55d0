# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from ausm_d2.config import add_ausm_config

ROOT = Path(__file__).resolve().parents[2]


def keys(cfg: CfgNode, section: str = "") -> set[str]:
    """The full names of all keys."""
    names = set()
    for key, value in cfg.items():
        names |= keys(value, f"{section}{key}.") if isinstance(value, CfgNode) else {section + key}
    return names


def test_every_key_is_read_by_the_code_and_named_where_somebody_needs_it() -> None:
    """A key that is not set, tested or documented anywhere should be a constant."""
    cfg = get_cfg()
    add_ausm_config(cfg)
    added = keys(cfg) - keys(get_cfg())

    def words(*patterns: str) -> set[str]:
        files = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
        ours = [path for path in files if path != Path(__file__) and path.parent != ROOT / "ausm_d2" / "config"]
        return set(re.findall(r"[A-Z][A-Z0-9_]+", " ".join(path.read_text() for path in ours)))

    read = words("ausm_d2/**/*.py", "train_net.py")
    named = words("configs/**/*.yaml", "tests/**/*.py", "tools/**/*.py", "docs/*.md", "datasets/*.md", "README.md")
    checks = (ROOT / "ausm_d2" / "config" / "checks.py").read_text()
    assert not {key for key in added if key.split(".")[-1] not in read and key.split(".")[-1] not in checks}
    # Keys that users of Mask2Former and the VIS projects look for.
    known = {"MODEL.MASK_FORMER.MASK_WEIGHT", "INPUT.SAMPLING_FRAME_RANGE"}
    assert {key for key in added if key.split(".")[-1] not in named} <= known
