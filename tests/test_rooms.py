# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Imports between the rooms of the package point downwards only (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ausm_d2"

# What each room may import of the package, beside the foundations. A room that is not named here is above all of them.
FOUNDATIONS = {"errors", "io", "names", "ids", "pictures", "allocator", "processes", "seeds", "stopping"}
FOUNDATIONS |= {"visualization", "__init__"}
MAY_IMPORT = {
    **{name: set() for name in FOUNDATIONS},
    "kernels": set(),
    "config": {"kernels"},  # the names of kernels
    "modeling": {"config", "kernels"},
    "masks": set(),
    "video": {"masks"},
    "data": {"config", "masks", "video"},
    "checkpoint": {"config"},
    "evaluation": {"checkpoint", "config", "data", "masks"},
    "training": {"config", "data", "kernels", "modeling"},
    "streaming": {"checkpoint", "config", "data", "kernels", "masks", "modeling"},
    "meta_arch": {"config", "data", "modeling", "streaming", "training"},
    "jobs": {"config", "masks", "streaming", "video"},
}


def imports(path: Path) -> set[str]:
    """Rooms of the package that a module imports, wherever in it, for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ausm_d2":
            found |= {alias.name for alias in node.names if (PACKAGE / alias.name).is_dir()
                      or (PACKAGE / f"{alias.name}.py").is_file()}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ausm_d2."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ausm_d2.")}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("name", sorted(MAY_IMPORT.keys() - {"__init__"}))
def test_a_room_imports_nothing_above_it(name: str) -> None:
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if room(path) == name]
    assert modules, f"no room {name}: the table above is out of date"
    allowed = MAY_IMPORT[name] | FOUNDATIONS | {name}
    wrong = {str(path.relative_to(PACKAGE)): sorted(imports(path) - allowed) for path in modules}
    assert {path: found for path, found in wrong.items() if found} == {}


def test_the_table_has_no_circle() -> None:
    done: set[str] = set()
    while rest := MAY_IMPORT.keys() - done:
        free = {name for name in rest if MAY_IMPORT[name] <= done}
        assert free, f"a circle among {sorted(rest)}"
        done |= free


def test_the_lower_rooms_do_not_import_for_type_checking_only() -> None:
    """Such an import hides a circle."""
    for name in ("kernels", "modeling", "training", "streaming", "meta_arch"):
        for path in sorted(PACKAGE.rglob("*.py")):
            if room(path) == name:
                assert "TYPE_CHECKING" not in path.read_text(encoding="utf-8"), path
