# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A submission as a zip, a JSON file or a folder: written from an evaluation's results, and checked."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from detectron2.data import MetadataCatalog

from ausm_d2.data.build import get_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission import json_lists
from ausm_d2.evaluation.submission.base import DataSet, Files, Format, Member
from ausm_d2.evaluation.submission.mask_pictures import MaskTree, ObjectTree
from ausm_d2.evaluation.submission.mot_text import MOTText
from ausm_d2.io import atomic_folder, atomic_write

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {  # the first five by metadata evaluator_type
    "ytvis": json_lists.YTVIS,
    "coco": json_lists.COCO,
    "vos": MaskTree(),
    "ytvos": MaskTree("Annotations/"),
    "sav": ObjectTree(),
    "mot": MOTText(),
}


def write(path: str | os.PathLike[str], members: Iterable[Member]) -> None:
    """Write the files of a submission to a zip, a single ``.json`` or a folder. Nothing is left if that fails.

    Raises:
        UserError: if it cannot be written, two files have the same name, or a name lies outside of the submission.
    """
    target = Path(path)
    if target.suffix == ".zip":
        with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in _each_once(target, members):
                with archive.open(name, "w", force_zip64=True) as file:
                    file.writelines(content)
    elif target.suffix == ".json":
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            for _, content in members:
                file.writelines(content)
    else:
        with atomic_folder(target) as folder:
            for name, content in _each_once(target, members):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("wb") as file:
                    file.writelines(content)


def _each_once(target: Path, members: Iterable[Member]) -> Iterator[Member]:
    """Yield the members; raise UserError at a name that is repeated or lies outside of the submission."""
    seen: set[str] = set()
    for name, content in members:
        parts = PurePosixPath(name).parts
        if name in seen:
            raise UserError(f"{target}: two videos would be written to {name!r}: their names are the same")
        if name.startswith("/") or ".." in parts:
            raise UserError(f"{target}: {name!r} would lie outside of the submission")
        seen.add(name)
        yield name, content


def write_submission(
    dataset_name: str, records: Sequence[VideoRecord], results: ResultFolder, output_dir: str | os.PathLike[str]
) -> None:
    """Write ``output_dir/submission.zip`` for a data set whose labels are not public, and log where to submit it."""
    path = Path(output_dir, "submission.zip")
    metadata = MetadataCatalog.get(dataset_name)
    write(path, FORMATS[metadata.evaluator_type].members(DataSet.of(dataset_name, records), results))
    server = f"the evaluation server that {metadata.homepage} names" if metadata.get("homepage") else "its server"
    logger.info("%s has no public labels, so nothing is scored here. Submit %s to %s.", dataset_name, path, server)


def check(path: str | os.PathLike[str], dataset_name: str, form: str | None = None) -> list[str]:
    """The reasons why a server would refuse a submission for a data set; empty if it is valid.

    Args:
        form: key of ``FORMATS``; default: the format of the data set's server.

    Raises:
        UserError: if the file or the data set does not exist.
    """
    records = get_records(dataset_name)
    kind = form or MetadataCatalog.get(dataset_name).evaluator_type
    data, files = DataSet.of(dataset_name, records), Files(path)
    return [*data.problems(), *files.problems(), *FORMATS[kind].problems(data, files)]
