# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Takes the guards out of the code one at a time, and runs the tests that reach each: does one of them fail?

A guard is a ``raise``, a warning, a call of a function that checks (``check_...``, ``require_...``), or one of several
conditions that lead to a ``raise``. Modules are changed while they are imported: each guard asks first whether it is
there. So all tests run once to learn which of them reach which guard, and then each guard is taken out in the same
process, without a new import. The folder named last keeps what was found; both commands go on where they stopped::

    python -m tests.faults.guards reach FOLDER tests/masks tests/video ...
    python -m tests.faults.guards remove FOLDER [--only ausm_d2/masks]
    python -m tests.faults.guards report FOLDER

What a process started by a test reaches counts too, unless the test gives it a ``PYTHONPATH`` of its own.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ausm_d2", "tools", "demo", "datasets", "train_net.py")
CHECKS = re.compile(r"_?(check|require|refuse|reject|validate|ensure|forbid|verify|problem|mismatch|unmatched)(_|$)")
WARNINGS = re.compile(r"_?(warn|warning|warn_once)$")
FOLDER, REMOVED = "AUSM_GUARDS", "AUSM_GUARDS_REMOVED"  # environment variables: they reach child processes
TRIES, SECONDS = 25, 40.0  # tests of one guard, and their time, before it counts as not found out


# --------------------------------------------------------------------------------------------- changing the code


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Guards(ast.NodeTransformer):
    """Lets each guard of a module be taken out; ``found``: where each is. Names do not change with the line numbers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[str, str] = {}
        self._scope: list[str] = []
        self._handlers = 0

    def _asked(self, node: ast.AST, kind: str) -> ast.expr:
        """An expression that is true while the guard is out."""
        text = " ".join(ast.unparse(node).split())
        name = f"{self.path} {'.'.join(self._scope)} {kind} {text}"
        guard, count = name, 1
        while guard in self.found:
            count += 1
            guard = f"{name} ({count})"
        self.found[guard] = f"{self.path}:{node.lineno} {kind}: {text}"  # type: ignore[attr-defined]
        return ast.Call(ast.Name("__removed_guard__", ast.Load()), [ast.Constant(guard)], [])

    def _unless(self, node: ast.stmt, kind: str, instead: ast.stmt | None = None) -> ast.stmt:
        test = ast.UnaryOp(ast.Not(), self._asked(node, kind))
        return ast.fix_missing_locations(ast.copy_location(ast.If(test, [node], [instead] if instead else []), node))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self._handlers += 1
        self.generic_visit(node)
        self._handlers -= 1
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        handlers, self._handlers = self._handlers, 0
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()
        self._handlers = handlers
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        if node.exc is None or "NotImplementedError" in ast.unparse(node.exc):
            return node
        # An error that is put in other words is raised as it was.
        return self._unless(node, "raise", ast.copy_location(ast.Raise(), node) if self._handlers else None)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        if isinstance(node.value, ast.Call):
            name = _name(node.value.func)
            if WARNINGS.match(name):
                return self._unless(node, "warning")
            if CHECKS.match(name):
                return self._unless(node, "check")
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is not None:
            node.test = self._parts(node.test)
        self.generic_visit(node)
        return ast.fix_missing_locations(node)

    def _parts(self, test: ast.expr) -> ast.expr:
        """``a or b`` and ``not (a and b)`` and ``not 0 <= a < b``: each part can be taken out."""
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
            parts = [
                ast.BoolOp(ast.And(), [part, ast.UnaryOp(ast.Not(), self._asked(part, "part"))]) for part in test.values
            ]
            return ast.copy_location(ast.BoolOp(ast.Or(), list(parts)), test)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = test.operand
            values: list[ast.expr] = []
            if isinstance(inner, ast.BoolOp) and isinstance(inner.op, ast.And):
                values = inner.values
            elif isinstance(inner, ast.Compare) and len(inner.ops) == 2 and _name(inner.comparators[0]):
                middle = inner.comparators[0]
                values = [
                    ast.copy_location(ast.Compare(inner.left, inner.ops[:1], [middle]), inner.left),
                    ast.copy_location(ast.Compare(middle, inner.ops[1:], inner.comparators[1:]), middle),
                ]
            if values:
                parts = [ast.BoolOp(ast.Or(), [part, self._asked(part, "part")]) for part in values]
                test.operand = ast.copy_location(ast.BoolOp(ast.And(), list(parts)), inner)
        return test


def changed(source: str, path: str) -> tuple[ast.Module, dict[str, str]]:
    """A module whose guards can be taken out, and where each guard is."""
    guards = Guards(path)
    tree = ast.fix_missing_locations(guards.visit(ast.parse(source)))
    return tree, guards.found


def all_guards() -> dict[str, str]:
    found: dict[str, str] = {}
    for room in ROOMS:
        top = ROOT / room
        for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if "configs/" not in name:
                found |= changed(path.read_text(encoding="utf-8"), name)[1]
    return found


# ------------------------------------------------------------------------------------------------------ importing

_seen: set[tuple[str, str]] = set()


def removed(guard: str) -> bool:
    """Called by a guard: is it out? Notes the test that reached it."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if test and (guard, test) not in _seen:
        _seen.add((guard, test))
        name, _, phase = test.rpartition(" ")
        line = json.dumps({"guard": guard, "test": name, "phase": phase.strip("()")}) + "\n"
        with open(Path(os.environ[FOLDER]) / "reached.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
    return os.environ.get(REMOVED) == guard


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.path)
        tree, _ = changed(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] not in ("ausm_d2", "tools", "demo", "datasets", "train_net"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not spec.origin or not spec.origin.endswith(".py") or ROOT not in Path(spec.origin).parents:
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


def install() -> None:
    """Change this project's modules when this process imports them."""
    builtins.__removed_guard__ = removed  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder())
    of_file = importlib.util.spec_from_file_location

    def changed_file(name: str, location: Any = None, **options: Any) -> ModuleSpec | None:
        path = Path(location or "").resolve()
        room = path.relative_to(ROOT).parts[0] if ROOT in path.parents else ""
        loader = {"loader": _Loader(name, str(path))} if room in ROOMS else {}
        return of_file(name, location, **{**options, **loader})

    importlib.util.spec_from_file_location = changed_file


def _install_in_children(folder: Path) -> None:
    site = folder / "site"
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('guards_of_faults', {str(Path(__file__).resolve())!r})\n"
        "module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\nmodule.install()\n"
    )
    paths = [str(site), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    os.environ[FOLDER] = str(folder)


# ---------------------------------------------------------------------------------------------- running the tests


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


class Reach:
    """A plugin of pytest: notes how long each test took and whether it passed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tests.jsonl"

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        done = {line["test"] for line in _lines(self.path)}
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            entry = {"test": report.nodeid, "seconds": round(report.duration, 3), "passed": report.passed}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _too_long(*_: Any) -> None:
    raise TimeoutError("a test ran for longer than it may")


class Remove:
    """A plugin of pytest: takes guards out and runs the tests that reach each, the fastest first, until one fails."""

    def __init__(self, folder: Path, only: str) -> None:
        self.folder = folder
        tests = {line["test"]: line for line in _lines(folder / "tests.jsonl")}
        reached: dict[str, set[str]] = defaultdict(set)
        self.in_fixture: set[str] = set()
        for line in _lines(folder / "reached.jsonl"):
            if line["phase"] != "call":
                self.in_fixture.add(line["guard"])
            if tests.get(line["test"], {}).get("passed"):
                reached[line["guard"]].add(line["test"])
        done = {line["guard"] for line in _lines(folder / "removed.jsonl")}
        self.plan = {
            guard: sorted(reached[guard], key=lambda test: tests[test]["seconds"])
            for guard in all_guards()
            if guard.startswith(only) and guard not in done and reached[guard]
        }
        self.wanted = {test for names in self.plan.values() for test in names[:TRIES]}
        self.passes: dict[str, bool] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self.wanted]

    def _run(self, item: Any, everything: bool) -> bool:
        """Whether a test passes; ``everything``: afterwards no fixture is kept."""
        from _pytest.runner import runtestprotocol

        neighbours = self.neighbours[item.nodeid.split("::")[0]]
        other = next((each for each in neighbours if each is not item), None)
        item._initrequest()
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(60)
        try:
            reports = runtestprotocol(item, log=False, nextitem=None if everything else other)
        finally:
            signal.alarm(0)
        return all(not report.failed for report in reports)

    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.neighbours: dict[str, list[Any]] = defaultdict(list)
        for item in session.items:
            self.neighbours[item.nodeid.split("::")[0]].append(item)
        for guard, names in self.plan.items():
            began, red, tried = time.monotonic(), "", 0
            for name in [name for name in names if name in items and self.passes.get(name, True)][:TRIES]:
                if time.monotonic() - began > SECONDS:
                    break
                tried += 1
                os.environ[REMOVED] = guard
                try:
                    passes = self._run(items[name], guard in self.in_fixture)
                finally:
                    del os.environ[REMOVED]
                if passes:
                    continue
                if name not in self.passes:  # a test that fails when it runs again says nothing
                    self.passes[name] = self._run(items[name], guard in self.in_fixture)
                if self.passes[name]:
                    red = name
                    break
            with open(self.folder / "removed.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"guard": guard, "red": red, "tried": tried, "reach": len(names)}) + "\n")
        return True


def report(folder: Path) -> None:
    """Print how many guards there are, how many are held by a test, and the others."""
    guards = all_guards()
    removed_guards = {line["guard"]: line for line in _lines(folder / "removed.jsonl")}
    reached = {line["guard"] for line in _lines(folder / "reached.jsonl")}
    red = {guard for guard in guards if removed_guards.get(guard, {}).get("red")}
    for guard, text in guards.items():
        if guard not in red:
            entry = removed_guards.get(guard)
            state = f"passes {entry['tried']} of {entry['reach']} tests" if entry else "not tried"
            print(f"{text[:160]} -- {state if guard in reached else 'not reached'}")
    print(f"{len(guards)} guards, {len([g for g in guards if g in reached])} reached by tests, {len(red)} held by one")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("reach", "remove", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("tests", nargs="*", default=[])
    parser.add_argument("--only", default="", help="remove: guards whose file starts with this")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.step == "report":
        report(args.folder)
        return 0
    install()
    _install_in_children(args.folder)
    import pytest

    if args.step == "reach":
        return int(pytest.main(["-q", "-p", "no:cacheprovider", *(args.tests or ["tests"])], [Reach(args.folder)]))
    plugin = Remove(args.folder, args.only)
    files = sorted({test.split("::")[0] for test in plugin.wanted})
    return int(pytest.main(["-q", "-s", "-p", "no:cacheprovider", *files], [plugin])) if files else 0


if __name__ == "__main__":
    sys.exit(main())
