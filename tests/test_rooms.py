# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Imports between the packages point downwards only, as the table in docs/architecture.md says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import LONG, TESTS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ausm_d2"
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
COMMANDS = {"tools", "demo", "datasets", "tests", "train_net"}  # of the checkout; they import the package


def table() -> dict[str, set[str]]:
    """What each room may import of the package, from rows such as "| `a`, `b` | `c`; a remark |"."""
    rows = [row.split("|")[1:3] for row in re.findall(r"^\| .*`.*\|$", ARCHITECTURE, re.MULTILINE)]
    names = [[set(re.findall(r"`(\w+)`", cell.split(";")[0])) for cell in row] for row in rows]
    foundations = next(rooms for row, (rooms, _) in zip(rows, names, strict=True) if "foundations" in row[0])
    return {room: allowed | foundations for rooms, allowed in names for room in rooms}


MAY_IMPORT = table()


def rooms_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).parts[0].removesuffix(".py") for path in MODULES}


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a module imports, anywhere in its code, including names imported from the package itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ausm_d2":
            found |= {f"ausm_d2.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


def test_the_table_and_the_tree_name_every_room_and_no_other() -> None:
    rooms = rooms_in(PACKAGE)
    assert rooms == MAY_IMPORT.keys()
    tree = ARCHITECTURE.split("```")[1]
    assert {room for room in rooms if not re.search(rf"\b{room}(/|\.py)", tree)} == set()


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_nothing_above_it(room: str) -> None:
    wrong = {}
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == room:
            above = {name.split(".")[1] for name in imports(path) if name.startswith("ausm_d2.")}
            above -= {room, *MAY_IMPORT[room], "__version__"}
            wrong[str(path.relative_to(PACKAGE))] = above
    assert {path: found for path, found in wrong.items() if found} == {}


def test_the_walks_and_places_name_functions_and_files_that_exist() -> None:
    defined: set[str] = set()
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined.add(node.name)
    sections = ARCHITECTURE.split("\n## ")
    walks = [section for section in sections if section.startswith("A ")]
    [places] = [section for section in sections if section.startswith("Where is")]
    assert len(walks) == 2 and all(6 <= len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 10 for walk in walks)
    steps = re.findall(r"^(?:\d+\. |   |- |  ).*", "\n".join([*walks, places]), re.MULTILINE)
    named = {name for step in steps for name in re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)?|[a-z_]\w*)`", step)}
    assert len(named) > 60 and named - defined == set()
    files = {name for step in steps for name in re.findall(r"\w+\.py", step)}
    assert files <= {path.name for path in MODULES}


def test_the_package_imports_no_command_of_the_checkout() -> None:
    for path in (PACKAGE / "__init__.py", *MODULES):
        assert not COMMANDS & {name.split(".")[0] for name in imports(path)}, path


def test_the_table_has_no_circle() -> None:
    foundations = set.intersection(*MAY_IMPORT.values())
    done = set(foundations)
    while rest := MAY_IMPORT.keys() - done:
        free = {name for name in rest if MAY_IMPORT[name] <= done}
        assert free, f"a circle among {sorted(rest)}"
        done |= free


def test_nothing_of_ours_is_imported_for_type_checking_only() -> None:
    """Such an import hides a circular import."""
    for folder in ("ausm_d2", "tools", "demo"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                    assert "ausm_d2" not in ast.unparse(node), f"{path}:{node.lineno}"


def test_files_have_at_most_350_lines_and_functions_60() -> None:
    long = []
    for file in sorted((ROOT / "ausm_d2").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        functions = [
            (node.name, node.end_lineno - node.lineno + 1)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        ]
        long += [f"{file.name}: {name}: {lines}" for name, lines in functions if lines > 60]
        long += [f"{file.name}: {lines}" for lines in [text.count("\n")] if lines > 350]
    assert not long


def test_the_test_files_that_are_run_first_exist() -> None:
    assert [name for name in LONG if not (TESTS / name).is_file()] == []
