# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What all submission formats share: the data set, the files, and the interface of a format."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import MetadataCatalog

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.names import files_below

# A file of a submission: its path inside, and its content in pieces.
Member = tuple[str, Iterable[bytes]]


@dataclass
class DataSet:
    """The data set that a submission is for."""

    name: str
    records: Sequence[VideoRecord]
    category_ids: dict[int, int]  # the data set's own, by contiguous id

    @classmethod
    def of(cls, name: str, records: Sequence[VideoRecord]) -> DataSet:
        """From the metadata of a registered data set. Category ids start at 1 if it has none of its own."""
        metadata = MetadataCatalog.get(name)
        own = metadata.get("thing_dataset_id_to_contiguous_id")
        if own is None:
            return cls(name, records, {index: index + 1 for index in range(len(metadata.thing_classes))})
        return cls(name, records, {contiguous: category for category, contiguous in own.items()})

    def problems(self) -> Iterator[str]:
        """Names of several videos: a server would see one of these videos only."""
        for name, count in Counter(record.name for record in self.records).items():
            if count > 1:
                yield f"{self.name} has {count} videos of the name {name!r}; files of results are named by videos"


_LARGE, _PACKED = 100_000_000, 100  # bytes, compression ratio: no file of results exceeds both


class Files:
    """The files of a submission, in a zip, in a folder, or one on its own."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            self.names = sorted(file.relative_to(path).as_posix() for file in files_below(path) if file.is_file())
        elif not self.path.is_file():
            raise UserError(f"{path}: no such file or folder")
        elif zipfile.is_zipfile(path):
            self.zip = zipfile.ZipFile(path)
            self.names = sorted(entry.filename for entry in self.zip.infolist() if not entry.is_dir())
        else:
            self.names = [self.path.name]

    def problems(self) -> Iterator[str]:
        """Names of several files in a zip: a server would see one of these files only."""
        yield from (f"{name}: in the zip {count} times" for name, count in Counter(self.names).items() if count > 1)

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            UserError: if the zip is damaged, encrypted, or compressed more than results can be.
        """
        if self.zip is not None:
            entry = self.zip.getinfo(name)
            if entry.file_size > _LARGE and entry.file_size > _PACKED * entry.compress_size:
                raise UserError(
                    f"{self.path}: {name} in it is not read: {entry.file_size / 1e9:.1f} GB that were packed into "
                    f"{entry.compress_size / 1e6:.1f} MB"
                )
            try:
                return self.zip.read(name)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise UserError(f"{self.path}: {name} in it cannot be read: {error}") from None
        return (self.path / name if self.path.is_dir() else self.path).read_bytes()


class Format:
    """A submission format."""

    def members(self, data: DataSet, results: ResultFolder) -> Iterator[Member]:
        """Yield the files of a submission, made from results."""
        raise NotImplementedError

    def problems(self, data: DataSet, files: Files) -> Iterator[str]:
        """What a server would refuse or score wrongly, one line each."""
        raise NotImplementedError
