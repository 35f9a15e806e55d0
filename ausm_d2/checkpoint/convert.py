# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Renames and resizes the weights of a file to fit a model, and reports the outcome for every tensor.

The kind of file is recognised by its tensor names:

- checkpoints of this project, and files written by ``tools/convert_weights.py``;
- Mask2Former (``backbone.*``, ``sem_seg_head.*``), in the three layouts in circulation:
  ``sem_seg_head.pixel_decoder.*``, the older ``sem_seg_head.*`` without it (and ``static_query`` for ``query_feat``),
  and a doubled ``pixel_decoder.pixel_decoder``;
- classification checkpoints of the backbone: official Swin files, timm models, Detectron2's ResNets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from ausm_d2.errors import UserError

_BACKBONE = "frame_encoder.backbone."
_CLASS_EMBED = "pixel_decoder.class_embed."
_TRAINING_ONLY = "frame_classifier."
_COCO_HEAD = "coco"  # label set of Mask2Former's COCO checkpoints
_COMPUTED = ("relative_position_index", "attn_mask")  # buffers that Swin computes


class Origin(StrEnum):
    """The kind of model that the weights of a file come from."""

    AUSM = "AUSM"
    MASK2FORMER = "Mask2Former"
    BACKBONE = "image classification"


class Status(StrEnum):
    """The outcome for a tensor of the file or of the model."""

    MATCHED = "matched"
    RENAMED = "renamed"
    RESIZED = "resized"
    RANDOM = "left random"
    UNUSED = "not used"
    FAILED = "does not fit"


@dataclass(frozen=True)
class Entry:
    """The outcome for one tensor."""

    status: Status
    source: str = ""  # name in the file
    target: str = ""  # name in the model
    values: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Conversion:
    """The weights of a file with the names and shapes of a model, and the outcome for every tensor."""

    origin: Origin
    weights: dict[str, Tensor]
    entries: list[Entry]

    def of(self, *status: Status) -> list[Entry]:
        """The entries with one of these statuses."""
        return [entry for entry in self.entries if entry.status in status]

    def table(self) -> str:
        """The outcomes as a table, one line per module and reason, followed by the counts."""
        groups: dict[tuple[str, ...], list[Entry]] = {}
        for entry in self.entries:
            key = (entry.status, _module(entry.source), _module(entry.target), entry.reason)
            groups.setdefault(key, []).append(entry)
        order = list(Status)
        rows = []
        for (status, source, target, reason), entries in sorted(
            groups.items(), key=lambda g: order.index(Status(g[0][0]))
        ):
            if len(entries) == 1:
                source, target = entries[0].source, entries[0].target
            else:
                source, target = (f"{name}.*" if name else "" for name in (source, target))
            rows.append([status, source, target, len(entries), sum(entry.values for entry in entries), reason])
        header = ["", "in the file", "in the model", "tensors", "values", "why"]
        return f"{tabulate(rows, header, tablefmt='simple')}\n\n{self.summary()}"

    def summary(self) -> str:
        """The number of tensors by status, in one line."""
        counts = ", ".join(f"{len(self.of(status))} {status}" for status in Status)
        return f"{self.origin} weights: {counts} (tensors)"

    def check(self, path: str, *, complete: bool = False) -> None:
        """Refuse weights that do not fit.

        Args:
            path: the file, for the message.
            complete: also refuse weights that leave parameters of the model random.

        Raises:
            UserError: the number of tensors that do not fit, by module, with the first one of each.
        """
        bad = self.of(Status.FAILED, Status.RANDOM) if complete else self.of(Status.FAILED)
        bad = [entry for entry in bad if entry.status is Status.FAILED or not entry.target.startswith(_TRAINING_ONLY)]
        if not bad:
            return
        groups: dict[str, list[Entry]] = {}
        for entry in bad:
            groups.setdefault(_module(entry.target or entry.source), []).append(entry)
        parts = [
            f"{module} ({len(entries)} {'tensor' if len(entries) == 1 else 'tensors'}, such as "
            f"{(entries[0].target or entries[0].source).removeprefix(module + '.')}: {entries[0].reason})"
            for module, entries in groups.items()
        ]
        more = f"; and {len(parts) - 4} more modules" if len(parts) > 4 else ""
        raise UserError(f"{path}: these {self.origin} weights do not fit the config: {'; '.join(parts[:4])}{more}")


def _module(name: str) -> str:
    """The module of a tensor: at most the first two parts of its name, up to a number."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if len(rest) > 1 and first != "backbone" and not rest[0].isdigit() else first


def convert(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    origin: str | None = None,
    added_modules: tuple[str, ...] = (),
) -> Conversion:
    """Rename and resize weights to fit a model, and report the outcome for every tensor of both.

    Args:
        state: the file's tensors by name.
        target: the model's ``state_dict()``.
        origin: for files that were converted before: the kind of model the weights came from.
        added_modules: name prefixes of modules that a variant of the model adds; they may be left random.

    Raises:
        UserError: if no tensor of the file belongs to the model.
    """
    if all(name.startswith("module.") for name in state):  # saved from DistributedDataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    kind, places = _recognise(state, target, origin)
    weights: dict[str, Tensor] = {}
    entries: list[Entry] = []
    for source, value in state.items():
        place = places[source]
        status, reason = Status.MATCHED if place == source else Status.RENAMED, ""
        if source.endswith(_COMPUTED):
            status, reason = Status.UNUSED, "the model computes it"
        elif place in weights:
            status, reason = Status.UNUSED, f"the file has {place} twice"
        elif place not in target:
            status, reason = _leftover(kind, source, place)
        elif value.is_floating_point() and not value.isfinite().all():
            status, reason = Status.FAILED, "values that are not finite"
        elif value.shape != target[place].shape:
            resized = _resize(place, value, target[place].shape)
            shapes = f"{tuple(value.shape)} in the file, {tuple(target[place].shape)} in the model"
            if place.startswith(_CLASS_EMBED) and kind is Origin.MASK2FORMER:
                status, reason = Status.UNUSED, f"classifier of another label set: {shapes}"
            elif resized is None:
                status, reason = Status.FAILED, shapes
            else:
                status, reason, value = Status.RESIZED, shapes, resized
        if status in (Status.MATCHED, Status.RENAMED, Status.RESIZED):
            weights[place] = value
        named = place if place in target and status is not Status.UNUSED else ""
        entries.append(Entry(status, source, named, value.numel(), reason))

    found = {entry.target for entry in entries if entry.target}
    label_sets = {name.split(".")[2] for name in found if name.startswith(_CLASS_EMBED)}
    for name, value in target.items():
        if name not in found and not name.endswith((*_COMPUTED, "num_batches_tracked")):
            status, reason = _missing(kind, name, label_sets, added_modules)
            entries.append(Entry(status, "", name, value.numel(), reason))
    return Conversion(kind, weights, entries)


def _recognise(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], origin: str | None
) -> tuple[Origin, dict[str, str]]:
    """The kind of a file, and the name in the model for each of its names.

    Raises:
        UserError: if no tensor of the file belongs to the model.
    """
    if any(name.startswith(("frame_encoder.", "id_pool.")) for name in state):
        kind, places = Origin(origin) if origin in list(Origin) else Origin.AUSM, {n: n for n in state}
    elif any(name.startswith("sem_seg_head.") for name in state):
        kind, places = Origin.MASK2FORMER, {name: _place_of_mask2former(name) for name in state}
    else:
        kind, places = Origin.BACKBONE, _places_of_backbone(state, target)
    if not any(place in target for place in places.values()):
        raise UserError(
            f"no tensor of the file belongs to this model; the file begins with {list(state)[:3]}, expected are the "
            "names of AUSM, of Mask2Former (sem_seg_head.*) or of the backbone's classification weights"
        )
    return kind, places


def _place_of_mask2former(name: str) -> str:
    """The name in AUSM for a tensor name of Mask2Former."""
    if name.startswith("backbone."):
        return f"frame_encoder.{name}"
    if not name.startswith("sem_seg_head."):
        return name
    rest = name.removeprefix("sem_seg_head.")
    if not rest.startswith("predictor."):
        while rest.startswith("pixel_decoder."):
            rest = rest.removeprefix("pixel_decoder.")
        return f"frame_encoder.pixel_decoder.{rest}"
    rest = rest.removeprefix("predictor.").replace("static_query.", "query_feat.")
    if rest.startswith("class_embed."):
        rest = rest.replace("class_embed.", f"class_embed.{_COCO_HEAD}.")
    return f"pixel_decoder.{rest}"


def _places_of_backbone(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, str]:
    """Map a backbone's tensors by name; if the names are from another library, by order, provided all shapes agree."""

    def plain(name: str) -> str:  # timm's features_only models have stages_0 for stages.0
        return name.removeprefix("backbone.").replace("_", ".")

    ours = [name for name in target if name.startswith(_BACKBONE)]
    by_name = {plain(name.removeprefix(_BACKBONE).removeprefix("net.").removeprefix("model.")): name for name in ours}
    places = {name: by_name.get(plain(name), name) for name in state}
    if any(place in target for place in places.values()):
        return places
    theirs = [name for name in state if not name.endswith("num_batches_tracked")]
    ours = [name for name in ours if not name.endswith("num_batches_tracked")]
    if ours and [target[name].shape for name in ours] == [state[name].shape for name in theirs[: len(ours)]]:
        return places | dict(zip(theirs, ours, strict=False))
    return places


def _leftover(kind: Origin, source: str, place: str) -> tuple[Status, str]:
    """The outcome for a tensor of the file that the model does not have."""
    if place.startswith(_TRAINING_ONLY):
        return Status.UNUSED, "of a loss that the config does not use"
    if place.startswith(_CLASS_EMBED):
        return Status.UNUSED, f"the config has no label set '{place.split('.')[2]}'"
    # Otherwise a deeper Swin would load into a shallower one without an error.
    if kind is Origin.AUSM or source.removeprefix("backbone.").startswith("layers."):
        return Status.FAILED, "in the file, not in the model"
    if source.endswith("num_batches_tracked"):
        return Status.UNUSED, "a counter that frozen norms do not have"
    if kind is Origin.BACKBONE:
        return Status.UNUSED, "the classifier's"
    if source.startswith("criterion."):
        return Status.UNUSED, "a weight of the loss, which the config sets"
    return Status.UNUSED, "not in the model"


def _missing(kind: Origin, target: str, label_sets: set[str], added_modules: tuple[str, ...]) -> tuple[Status, str]:
    """The outcome for a tensor of the model that the file does not have."""
    if target.startswith(_TRAINING_ONLY):
        return Status.RANDOM, "of a loss that the file was not trained with"
    if target.startswith(added_modules):
        return Status.RANDOM, "of a variant of the model, which the file was not trained with"
    if target.startswith(_CLASS_EMBED) and target.split(".")[2] not in label_sets:
        return Status.RANDOM, "a label set that the file does not have"
    if kind is Origin.MASK2FORMER and target.startswith("pixel_decoder.track_embed."):
        return Status.RANDOM, "the position of tracked rows, new in AUSM"
    if kind is Origin.BACKBONE and re.fullmatch(re.escape(_BACKBONE) + r"norm\d\.(weight|bias)", target):
        return Status.RANDOM, "a norm per stage, which a classifier does not have"
    if kind is Origin.MASK2FORMER:
        scope: tuple[str, ...] = ("frame_encoder.", "pixel_decoder.")
    else:
        scope = ("",) if kind is Origin.AUSM else (_BACKBONE,)
    if target.startswith(scope):
        return Status.FAILED, "in the model, not in the file"
    return Status.RANDOM, f"not part of {kind} weights"


def _resize(name: str, value: Tensor, shape: torch.Size) -> Tensor | None:
    """Interpolate a relative position table to another window size, or average learned queries into the one row that is
    added to proposals; None for other tensors."""
    if name.startswith("pixel_decoder.query_") and shape == (1, value.shape[-1]):
        return value.mean(dim=0, keepdim=True)
    if not name.endswith("relative_position_bias_table") or value.ndim != 2 or value.shape[1] != shape[1]:
        return None
    old, new = math.isqrt(value.shape[0]), math.isqrt(shape[0])
    if old * old != value.shape[0] or new * new != shape[0]:
        return None
    square = value.float().T.reshape(1, -1, old, old)
    return F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).T.contiguous()
