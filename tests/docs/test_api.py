# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The API page: every public name has a docstring, and pdoc makes the page of it (``make docs``)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pdoc
import pytest

import ausm_d2

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MODULES = MAKEFILE.split("API := ")[1].split("\n\n")[0].replace("\\\n", " ").split()


def public(node: ast.AST) -> list[ast.AST]:
    """The public functions, classes and methods of a module or class."""
    kinds = ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
    named = [each for each in getattr(node, "body", []) if isinstance(each, kinds) and not each.name.startswith("_")]
    named = [each for each in named if not any(ast.unparse(by).endswith(".setter") for by in each.decorator_list)]
    return [*named, *(inner for each in named if isinstance(each, ast.ClassDef) for inner in public(each))]


@pytest.mark.parametrize("path", sorted((ROOT / "ausm_d2" / "streaming").glob("*.py")), ids=lambda path: path.stem)
def test_every_public_name_of_streaming_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [f"{each.name}, line {each.lineno}" for each in public(tree) if not ast.get_docstring(each)]  # type: ignore[attr-defined, arg-type]
    assert ast.get_docstring(tree) and missing == []


def test_every_name_that_the_package_exports_has_a_docstring() -> None:
    for name in set(ausm_d2.__all__) - {"__version__"}:
        assert getattr(ausm_d2, name).__doc__, name


def test_the_page_is_made(tmp_path: Path) -> None:
    assert {"ausm_d2", "ausm_d2.streaming.predictor", "ausm_d2.streaming.prompts"} <= set(MODULES)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("ausm_d2.streaming.predictor", "ausm_d2.streaming.prompts", output_directory=tmp_path)
    page = (tmp_path / "ausm_d2" / "streaming" / "predictor.html").read_text(encoding="utf-8")
    assert "from_pretrained" in page and "A model whose weights come with the package" in re.sub(r"\s+", " ", page)
