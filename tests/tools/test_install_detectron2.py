# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The repacking of the Detectron2 wheel, on a wheel of a few bytes: no network, nothing installed."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tools import install_detectron2
from tools.install_detectron2 import NAME, REQUIREMENTS, VERSION, InstallError, download, repack

SOURCE_FILES = {
    "detectron2/__init__.py": 'from .utils import env\n\n__version__ = "0.7.2"\n',
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "\x7fELF",
    "detectron2/data/common.py": "x = 1\n",
    "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "detectron2.libs/libgomp.so.1": "\x7fELF",
    "tools/__init__.py": "",
    "tools/train_net.py": "raise SystemExit\n",
    "sal_detectron2-0.7.2.dist-info/LICENSE": "Apache License\n",
    "sal_detectron2-0.7.2.dist-info/METADATA": "Name: sal-detectron2\nRequires-Dist: numpy<2\nRequires-Dist: black\n",
    "sal_detectron2-0.7.2.dist-info/WHEEL": "Tag: cp310-cp310-linux_x86_64\n",
    "sal_detectron2-0.7.2.dist-info/RECORD": "",
}
INFO = f"{NAME}-{VERSION}.dist-info"


def write_wheel(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.fixture
def repacked(tmp_path: Path) -> dict[str, bytes]:
    """Content of the repacked wheel by name."""
    path = repack(write_wheel(tmp_path, SOURCE_FILES), tmp_path)
    assert path.name == f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        assert wheel.testzip() is None
        return {name: wheel.read(name) for name in wheel.namelist()}


def test_keeps_code_data_and_licence_and_nothing_else(repacked: dict[str, bytes]) -> None:
    assert set(repacked) == {
        "detectron2/__init__.py",
        "detectron2/data/common.py",
        "detectron2/model_zoo/configs/Base.yaml",
        *(f"{INFO}/{name}" for name in ("LICENSE", "METADATA", "WHEEL", "RECORD", "top_level.txt")),
    }
    assert repacked["detectron2/data/common.py"] == b"x = 1\n"
    assert repacked[f"{INFO}/LICENSE"] == b"Apache License\n"


def test_metadata_is_that_of_a_pure_python_detectron2(repacked: dict[str, bytes]) -> None:
    metadata = Parser().parsestr(repacked[f"{INFO}/METADATA"].decode())
    assert (metadata["Name"], metadata["Version"]) == ("detectron2", VERSION)
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata.get_all("Requires-Dist") == list(REQUIREMENTS)
    assert not any(r.startswith("black") or r == "numpy<2" for r in REQUIREMENTS)
    wheel = Parser().parsestr(repacked[f"{INFO}/WHEEL"].decode())
    assert (wheel["Root-Is-Purelib"], wheel["Tag"]) == ("true", "py3-none-any")
    namespace: dict[str, str] = {}
    exec(repacked["detectron2/__init__.py"].split(b"\n\n")[1], namespace)
    assert namespace["__version__"] == VERSION


def test_record_lists_every_file_with_its_hash(repacked: dict[str, bytes]) -> None:
    rows = dict(line.split(",", 1) for line in repacked[f"{INFO}/RECORD"].decode().splitlines())
    assert set(rows) == set(repacked)
    assert rows.pop(f"{INFO}/RECORD") == ","
    for name, row in rows.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(repacked[name]).digest()).decode().rstrip("=")
        assert row == f"sha256={digest},{len(repacked[name])}", name


def test_pip_installs_the_wheel(tmp_path: Path) -> None:
    wheel = repack(write_wheel(tmp_path, SOURCE_FILES), tmp_path)
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), wheel]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in target.iterdir()) == ["detectron2", INFO]


def test_same_input_gives_the_same_file(tmp_path: Path) -> None:
    source = write_wheel(tmp_path, SOURCE_FILES)
    first = repack(source, tmp_path).read_bytes()
    os.utime(source, (0, 0))
    assert repack(source, tmp_path).read_bytes() == first


@pytest.mark.parametrize(
    ("missing", "message"),
    [("detectron2/__init__.py", "sets __version__ 0 times"), ("sal_detectron2-0.7.2.dist-info/LICENSE", "no licence")],
)
def test_refuses_a_wheel_that_is_not_the_expected_one(tmp_path: Path, missing: str, message: str) -> None:
    source = write_wheel(tmp_path, {name: text for name, text in SOURCE_FILES.items() if name != missing})
    with pytest.raises(InstallError, match=message):
        repack(source, tmp_path)


def test_refuses_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "cut.whl").write_bytes(b"PK\x03\x04")
    with pytest.raises(InstallError, match=r"cut\.whl: not a readable wheel"):
        repack(tmp_path / "cut.whl", tmp_path)


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path, SOURCE_FILES)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "out").mkdir()
    with pytest.raises(InstallError, match="SHA-256 is not 491af0c7"):
        download(tmp_path / "out")


def test_without_an_index_the_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(install_detectron2, "installed", lambda: None)
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    assert install_detectron2.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: could not fetch sal-detectron2==0.7.2") and "network" in error
    assert error.count("\n") == 1


def test_does_nothing_where_detectron2_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_detectron2, "installed", lambda: "0.6 at somewhere")
    monkeypatch.setattr(install_detectron2, "_pip", lambda *_: pytest.fail("pip was run"))
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    assert install_detectron2.main() == 0
    assert "detectron2 0.6 at somewhere is there already" in capsys.readouterr().out
