# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Loads weights from a path or URL, and writes checkpoints."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from ausm_d2.checkpoint.convert import Origin, Status, convert
from ausm_d2.checkpoint.reading import is_whole, read_checkpoint, weights_to_use
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write

logger = logging.getLogger(__name__)


class ShippedWeights(PathHandler):
    """URLs of the weights shipped with the package: ``ausm://<file>`` is ``ausm_d2/weights/<file>``."""

    PREFIX = "ausm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return str(Path(__file__).resolve().parents[1] / "weights" / path.removeprefix(self.PREFIX))

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ShippedWeights(), allow_override=True)  # a reloaded module registers again


class AUSMCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with safe reading, conversion of foreign weights, strict checks and atomic writing."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: an AUSM.
            save_dir: output folder.
            complete: refuse weights that leave any parameter random (for inference).
            save_to_disk: None: in the main process only.
            checkpointables: further objects with a ``state_dict`` to save.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.complete = complete
        self._path = ""
        self._resumes_average = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load weights from a path or URL; "" loads nothing.

        If the checkpoint has averaged weights (MODEL_EMA), these are loaded, unless the average itself is resumed.

        Raises:
            UserError: if the file is missing, unsafe or damaged, or does not fit the model.
        """
        self._path = path
        states = args[0] if args else kwargs.get("checkpointables")
        self._resumes_average = "ema" in (self.checkpointables if states is None else states)
        if self.complete and not path:
            self.logger.warning("MODEL.WEIGHTS is empty: the weights are random")
        if path:
            try:
                local = PathManager.get_local_path(path)
            except Exception as error:  # every URL handler raises its own exceptions
                raise UserError(f"MODEL.WEIGHTS: '{path}' cannot be fetched: {error}") from error
            if not os.path.isfile(local):
                raise UserError(f"MODEL.WEIGHTS: weights file '{path}' does not exist")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        if not self._resumes_average and "ema" in checkpoint:
            self.logger.info("%s: loading the averaged weights", self._path)
            checkpoint["model"] = weights_to_use(checkpoint)
        try:
            conversion = convert(
                checkpoint.pop("model"),
                self.model.state_dict(),
                origin=checkpoint.get("converted_from"),
                added_modules=getattr(self.model, "added_modules", ()),
            )
        except UserError as error:
            raise UserError(f"{self._path}: {error}") from error
        conversion.check(self._path, complete=self.complete)
        plain = conversion.origin is Origin.AUSM and not conversion.of(Status.RESIZED, Status.RANDOM)
        self.logger.info("%s: %s", self._path, conversion.summary() if plain else f"\n{conversion.table()}")
        self.model.load_state_dict(conversion.weights, strict=False)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` atomically and name it in ``last_checkpoint``."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, durable=True) as temporary:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, temporary)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name a file of ``save_dir`` as the one to resume from."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint", durable=True) as temporary:
            temporary.write_text(last_filename_basename, encoding="utf-8")

    def get_checkpoint_file(self) -> str:
        """The file to resume from: the one that ``last_checkpoint`` names, or if that is damaged, the one before.

        Raises:
            UserError: it is damaged, and there is none before it that is whole.
        """
        tag = Path(self.save_dir) / "last_checkpoint"
        try:
            name = tag.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError):
            name = ""
        last = tag.parent / os.path.basename(name)  # of this folder, whatever is written there
        if name and is_whole(last):
            return str(last)
        state = "is damaged" if last.is_file() else "is not there"
        problem = f"{tag}: the checkpoint '{last.name}' {state}" if name else f"{tag}: names no checkpoint"
        for path in self._before(last.name):
            if is_whole(path):
                logger.warning("%s; the one before it is used: %s", problem, path.name)
                return str(path)
        raise UserError(f"{problem}, and there is no other one in that folder to resume from")

    def _before(self, name: str) -> list[Path]:
        """The checkpoints of ``save_dir`` that were written before the one of that name, the latest first.

        Higher numbers than its own are of an older training. Without a number (``model_final``), all are before it.
        """
        numbers = {path: _iteration(path.name) for path in Path(self.save_dir).glob("model_*.pth")}
        own = _iteration(name)
        numbered = {path: number for path, number in numbers.items() if number is not None}
        return sorted((p for p, n in numbered.items() if own is None or n < own), key=lambda p: -numbered[p])

    def remove_unfinished(self) -> None:
        """Remove what a process left that was killed while it saved; none may be saving now."""
        for pattern in (".model_*.*.pth", ".last_checkpoint.*"):
            for path in Path(self.save_dir).glob(pattern):
                path.unlink(missing_ok=True)


def _iteration(name: str) -> int | None:
    """The number in the name of a checkpoint."""
    found = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(found[1]) if found else None
