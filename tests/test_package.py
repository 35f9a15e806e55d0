# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The package: its wheel, its imports and its declared dependencies."""

from __future__ import annotations

import ast
import email.message
import email.parser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ausm_d2.config import PRETRAINED
from ausm_d2.config.files import PACKAGED

ROOT = Path(__file__).resolve().parents[1]
# Imported without being declared: Detectron2 is not on the package index, Triton comes with PyTorch on Linux and its
# kernels are not used without it.
UNDECLARED = {"detectron2", "triton"}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """stdout of a command that succeeds, with ``env`` as the only PYTHONPATH and so on."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    done = subprocess.run(command, cwd=cwd, env=own | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip, without a network, from a copy of the files that a clone has."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("ausm_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", ".")
    run(sys.executable, "-m", "pip", *build, cwd=source)
    [path] = (source / "dist").glob("*.whl")
    return path


@pytest.fixture
def metadata(wheel: Path) -> email.message.Message:
    """The metadata of the wheel."""
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(file.read(name).decode())


def test_the_wheel_holds_what_the_package_reads_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
        for config in (ROOT / "configs").rglob("*.yaml"):
            name = f"ausm_d2/configs/{config.relative_to(ROOT / 'configs')}"
            assert file.read(name) == config.read_bytes()
    assert {name.split("/")[0] for name in held} == {"ausm_d2"}
    kinds = ("py", "cpp", "h", "pth", "html", "js", "css", "svg")
    read = {path for kind in kinds for path in (ROOT / "ausm_d2").rglob(f"*.{kind}")}
    assert {str(path.relative_to(ROOT)) for path in read} == {name for name in held if not name.endswith(".yaml")}


def test_the_readme_is_the_long_description(metadata: email.message.Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_an_installed_wheel_follows_an_object_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = ("install", "--no-deps", "--no-index", "--no-compile", "--target", site, wheel)
    run(sys.executable, "-m", "pip", *install, cwd=empty)
    script = """
import ausm_d2, numpy as np
from importlib.resources import files
from ausm_d2 import VideoPredictor, add_ausm_config, load_config
from ausm_d2.data.synthvis import SynthVis

assert files("ausm_d2.configs").joinpath("edge/ausm_edge.yaml").is_file()
assert load_config("edge/ausm_edge.yaml").MODEL.WEIGHTS == "ausm://ausm_edge.pth"
video = SynthVis(3, 1, 4, complete=True)[0]
frames, true = [f[:, :, ::-1].copy() for f in video.frames], [video.masks.ids(t) == 1 for t in range(4)]
session = VideoPredictor.from_pretrained("ausm_nano", ["MODEL.DEVICE", "cpu"]).start(frames[0], {7: true[0]})
for frame, mask in zip(frames[1:], true[1:]):
    found = session.step(frame).instances.pred_masks[0].numpy()
print(ausm_d2.__file__, (found & mask).sum() / (found | mask).sum())
"""
    out = run(sys.executable, "-W", "error::UserWarning", "-c", script, cwd=empty, PYTHONPATH=str(site))
    file, iou = out.split()
    assert file == str(site / "ausm_d2/__init__.py")
    assert float(iou) > 0.8
    assert not list(empty.iterdir())


def test_importing_the_package_needs_neither_pytorch_nor_detectron2(tmp_path: Path) -> None:
    script = """
import sys, ausm_d2
assert not {"torch", "detectron2", "numpy"} & set(sys.modules), sorted(sys.modules)
assert {"VideoPredictor", "load_config", "add_ausm_config"} <= set(dir(ausm_d2))
sys.modules["detectron2"] = None
try:
    ausm_d2.load_config
except ModuleNotFoundError as error:
    print(error)
try:
    ausm_d2.load_configs
except AttributeError as error:
    print(error)
"""
    missing, unknown = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT)).splitlines()
    assert missing.startswith("ausm_d2 needs Detectron2")
    assert unknown == "module 'ausm_d2' has no attribute 'load_configs'"


def test_what_the_package_exports_is_what_the_modules_hold() -> None:
    import ausm_d2
    from ausm_d2.config import add_ausm_config, load_config
    from ausm_d2.streaming.predictor import VideoPredictor

    assert ausm_d2.VideoPredictor is VideoPredictor
    assert (ausm_d2.load_config, ausm_d2.add_ausm_config) == (load_config, add_ausm_config)
    with pytest.raises(ImportError):
        from ausm_d2 import no_such_name  # noqa: F401


def test_every_shipped_weights_file_is_a_pretrained_model() -> None:
    assert sorted(PRETRAINED) == sorted(path.stem for path in (ROOT / "ausm_d2/weights").glob("*.pth"))
    for name, config in PRETRAINED.items():
        assert f"WEIGHTS: ausm://{name}.pth" in (PACKAGED / config).read_text()


def test_everything_that_is_imported_is_declared(metadata: email.message.Message) -> None:
    imported = set()
    for path in (ROOT / "ausm_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.split(".")[0] for name in names}
    imported -= {*sys.stdlib_module_names, *UNDECLARED, "ausm_d2"}
    assert {"torch", "yaml", "tabulate", "cv2"} <= imported

    distributions = importlib.metadata.packages_distributions()
    declared = {_plain(re.split(r"[^\w.-]", line)[0]) for line in metadata.get_all("Requires-Dist", [])}
    unknown = {name for name in imported if not declared & {_plain(d) for d in distributions.get(name, [name])}}
    assert not unknown, f"imported by ausm_d2, missing in setup.py: {sorted(unknown)}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
