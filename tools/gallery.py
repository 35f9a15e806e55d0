# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/gallery.md, by the commands that stand there: ``python -m tools.gallery [NAME ...]``.

The clips are CC BY 4.0 (NOTICE). Results go to ``output/gallery/``, pictures to ``docs/images/gallery/``. Without
names, the first picture of the README is made too, from the same results: ``docs/images/real_video.jpg``.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ausm_d2.cli.main import main as ausm
from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write
from ausm_d2.video.inputs import open_source
from ausm_d2.visualization import contact_sheet

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "images" / "gallery"
README_PICTURE = ROOT / "docs" / "images" / "real_video.jpg"
OUTPUT = Path("output/gallery")
_COLUMNS, _WIDTH, _QUALITY = 4, 300, 80  # pictures of a strip; pixels of each; of the JPEG
_README_WIDTH = 448


@dataclass(frozen=True)
class Entry:
    """One picture of the page."""

    name: str
    command: str  # as the page has it; its results go to OUTPUT / name
    part: str = "overlay"  # "overlay": frames with their masks; "cutout": an object without its ground; "timeline"
    object_id: int = 0  # of a cutout


_CARS, _PERSON = "ausm track demo/clips/cars.mp4", "ausm track demo/clips/person.mp4"
_MASK = f"{_PERSON} --mask demo/clips/person.png -o output/gallery/person_mask --save overlay cutouts"
_CARS_MASK = f"{_CARS} --mask demo/clips/cars.png -o output/gallery/cars_mask --save overlay timeline"
ENTRIES = (
    Entry("person_mask", _MASK),
    Entry("person_cutout", _MASK, part="cutout", object_id=1),
    Entry("person_box", f"{_PERSON} --box 1:374,0,569,389 -o output/gallery/person_box --save overlay"),
    Entry("cars_mask", _CARS_MASK),
    Entry("cars_timeline", _CARS_MASK, part="timeline"),
    Entry("cars_found", f"{_CARS} -o output/gallery/cars_found --save overlay"),
    Entry("person_found", f"{_PERSON} -o output/gallery/person_found --save overlay"),
)

README_ROWS = {  # title: name of the entry
    "person.mp4, unprompted": "person_found",
    "person.mp4, the mask of the first frame given": "person_mask",
    "cars.mp4, the masks of the first frame given": "cars_mask",
}


def folder(entry: Entry) -> Path:
    """Where the results of its command go."""
    words = shlex.split(entry.command)
    return Path(words[words.index("-o") + 1])


def few(results: Path, width: int) -> list[np.ndarray]:
    """Some frames of ``overlay.mp4``, spread evenly: uint8 (height, width, 3) each, BGR."""
    frames = [frame.image for frame in open_source(results / "overlay.mp4").frames]
    places = np.linspace(0, len(frames) - 1, _COLUMNS).astype(int).tolist()
    return [_small(frames[place], width) for place in places]


def cutouts(results: Path, object_id: int) -> np.ndarray:
    """An object on a chequered ground, in some frames."""
    files = sorted((results / "objects" / str(object_id)).glob("*.png"))
    shown = []
    for index in np.linspace(0, len(files) - 1, _COLUMNS).astype(int).tolist():
        picture = cv2.imread(str(files[index]), cv2.IMREAD_UNCHANGED)
        rows, columns = np.indices(picture.shape[:2]) // 24
        ground = np.where((rows + columns) % 2, 225, 250)[..., None]
        share = picture[..., 3:] / 255
        shown.append(_small((picture[..., :3] * share + ground * (1 - share)).astype(np.uint8)))
    return contact_sheet([shown])


def _small(picture: np.ndarray, width: int = _WIDTH) -> np.ndarray:
    height = round(picture.shape[0] * width / picture.shape[1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def make(entry: Entry) -> Path:
    """Write the picture of an entry, from the results of its command."""
    results = folder(entry)
    if entry.part == "timeline":
        picture = cv2.imread(str(results / "timeline.png"))
    else:
        cutout = entry.part == "cutout"
        picture = cutouts(results, entry.object_id) if cutout else contact_sheet([few(results, _WIDTH)])
    return _write(PICTURES / f"{entry.name}.{'png' if entry.part == 'timeline' else 'jpg'}", picture)


def make_readme_picture() -> Path:
    """Write the first picture of the README, from the results of the entries in ``README_ROWS``."""
    folders = {entry.name: folder(entry) for entry in ENTRIES}
    rows = [few(folders[name], _README_WIDTH) for name in README_ROWS.values()]
    return _write(README_PICTURE, contact_sheet(rows, list(README_ROWS)))


def _write(path: Path, picture: np.ndarray) -> Path:
    with atomic_write(path) as temporary:
        cv2.imwrite(str(temporary), picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if path.suffix == ".jpg" else [])
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(entry.name for entry in ENTRIES))
    names = parser.parse_args(arguments).names
    unknown = set(names) - {entry.name for entry in ENTRIES}
    if unknown:
        raise UserError(f"no such picture: {', '.join(sorted(unknown))}")
    done: set[str] = set()
    for entry in ENTRIES:
        if names and entry.name not in names:
            continue
        if entry.command not in done:
            print(entry.command, flush=True)
            ausm(shlex.split(entry.command)[1:])
            done.add(entry.command)
        print(make(entry), flush=True)
    if not names:
        print(make_readme_picture())


if __name__ == "__main__":
    cli(main)
