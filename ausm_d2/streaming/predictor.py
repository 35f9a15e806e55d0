# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A trained model to use: frames in, masks out, in the manner of Detectron2's DefaultPredictor.

    predictor = VideoPredictor.from_pretrained("ausm_edge")     # or VideoPredictor(cfg)
    for result in predictor.stream(frames):            # unprompted; any iterator of frames
        ...
    session = predictor.start(first_frame, prompts={7: mask})
    result = session.step(frame)

Shape shorthand:
    H, W: size of the frames in pixels, as given
    N: rows of a result
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

from ausm_d2 import meta_arch as meta_arch  # registers AUSM
from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.fingerprint import fingerprint
from ausm_d2.config import pretrained_config
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.catalog.base import DEFAULT_TOPK
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.modeling.masks import winners
from ausm_d2.modeling.precision import keep_weights_in
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.stream import FrameOutput
from ausm_d2.streaming.video import FrameStream, VideoSettings, shown_rows

logger = logging.getLogger(__name__)

_FORMAT = "ausm_d2 stream, version 1"  # of saved sessions


@dataclass
class FrameResult:
    """What there is in one frame. All tensors live with the model."""

    frame_index: int  # from 0
    instances: Instances
    """Of N objects: ``pred_masks`` bool (N, H, W), which may overlap; ``scores`` (N): the mean probability, since the
    track began, of its class, or, where the user gave the object, of being there; ``pred_classes`` int64 (N);
    ``track_ids`` int64 (N). Unprompted work lists the objects in sight, prompted work all that are followed."""
    id_map: Tensor
    """int32 (H, W): track id of every pixel, 0 for background. Where masks overlap, the surest one has the pixel."""


class VideoPredictor:
    """Loads ``MODEL.WEIGHTS`` and segments any number of videos with them.

    Frames are uint8 (H, W, 3) BGR arrays, as OpenCV reads them. They are resized by ``INPUT.MIN_SIZE_TEST`` and
    ``MAX_SIZE_TEST``; masks come at the size of the frames. A frame costs one frame of work, memory does not grow.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a complete config, such as :func:`~ausm_d2.config.load_config` returns.

        Raises:
            UserError: weights that are missing or do not fit, or a key with a value that is none.
        """
        self.cfg = cfg.clone()
        if cfg.TEST.AUSM.REPEAT > 1 or cfg.TEST.AUSM.SPATIAL_TRAVERSAL:
            logger.warning("TEST.AUSM.REPEAT and SPATIAL_TRAVERSAL act in evaluation only: a stream sees a frame once")
        self.settings = VideoSettings.from_config(cfg)
        self.settings.topk = self.settings.topk or DEFAULT_TOPK
        self.model = build_model(cfg).eval()
        AUSMCheckpointer(self.model, complete=True).load(cfg.MODEL.WEIGHTS)
        if self.settings.amp:
            keep_weights_in(self.model, torch.bfloat16, norms=False)
            if self.model.device.type == "cuda":
                keep_weights_in(self.model, torch.bfloat16, norms=True)
        self.label_set: str = cfg.TEST.AUSM.LABEL_SET or cfg.MODEL.AUSM.LABEL_SETS[0][0]  # label set of detections

    @classmethod
    def from_pretrained(cls, name: str, opts: Sequence[Any] = ()) -> VideoPredictor:
        """A model whose weights come with the package: ``"ausm_edge"`` (real video) or ``"ausm_nano"`` (synthetic).

        Args:
            opts: alternating keys and values that replace those of its config, such as ``["MODEL.DEVICE", "cpu"]``.

        Raises:
            UserError: an unknown name or key.
        """
        return cls(pretrained_config(name, opts))

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
        """Find and follow all objects of a video, without prompts. A result leaves before the next frame is asked for.

        Raises:
            UserError: a frame that is none, or of another size than the first.
        """
        session = None
        for frame in frames:
            if session is None:
                session = self.start(frame)
                yield session.result
            else:
                yield session.step(frame)

    def start(self, frame: np.ndarray, prompts: Mapping[int, np.ndarray | Tensor] | None = None) -> Session:
        """Begin a video with its first frame.

        Args:
            frame: uint8 (H, W, 3), BGR.
            prompts: masks of the objects to follow, bool or 0/1 uint8 (H, W), by ids of one's own choice (1 or more).
                No other object is looked for; objects may be added later, so it may be empty. None: find all objects.

        Raises:
            UserError: a frame or a prompt that cannot be used.
        """
        label_set = self.label_set if prompts is None else self.settings.prompt_label_set
        return Session(
            self, FrameStream(self.model, self.settings, label_set=label_set, detect=prompts is None), frame, prompts
        )

    def load(self, path: str | os.PathLike[str]) -> Session:
        """The session that :meth:`Session.save` wrote; it continues as if it had never been interrupted.

        Raises:
            UserError: no such file, no saved session, or one of other weights or settings.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # torch.load raises half a dozen kinds
            raise UserError(f"{path}: not a saved session, or a damaged one") from error
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise UserError(f"{path}: not a saved session ('{_FORMAT}' expected)")
        if saved["weights"] != self.fingerprint:
            raise UserError(
                f"{path}: saved with other weights than {self.cfg.MODEL.WEIGHTS or 'these'}, or with other settings "
                "(MODEL, TEST.AUSM, INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST)"
            )
        return Session.from_saved(self, saved)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the settings that may change what a stream says."""
        return fingerprint(self.cfg, self.model)

    def class_names(self, label_set: str) -> list[str]:
        """The classes of a label set, named as in the first data set of the config that has it."""
        register_from_config(self.cfg)
        for name in (*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN):
            if name in DatasetCatalog and MetadataCatalog.get(name).get("label_set") == label_set:
                names = MetadataCatalog.get(name).get("thing_classes", [])
                if len(names) == self.model.label_sets[label_set]:
                    return list(names)
        count = self.model.label_sets[label_set]
        return [label_set] if count == 1 else [f"{label_set} {i}" for i in range(count)]

    def as_input(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3), BGR -> RGB, which the model reads.

        Raises:
            UserError: if it is no such array.
        """
        if not isinstance(frame, np.ndarray):
            raise UserError(f"a frame is a NumPy array, uint8 (H, W, 3), BGR; found {type(frame).__name__}")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise UserError(f"a frame is uint8 (H, W, 3), BGR; found {frame.dtype} {frame.shape}")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class Session:
    """One video, frame by frame. :meth:`VideoPredictor.start` and :meth:`VideoPredictor.load` make one."""

    result: FrameResult  # of the latest frame

    def __init__(
        self,
        predictor: VideoPredictor,
        frames: FrameStream,
        frame: np.ndarray,
        prompts: Mapping[int, np.ndarray | Tensor] | None,
    ) -> None:
        self._predictor = predictor
        self._frames = frames
        image = predictor.as_input(frame)
        given = _checked(prompts or {}, image.shape[:2])
        self._finish(frames.step(image, given), given)

    @classmethod
    def from_saved(cls, predictor: VideoPredictor, saved: dict[str, Any]) -> Session:
        """What :meth:`save` wrote, back to life; see :meth:`VideoPredictor.load`."""
        session = cls.__new__(cls)
        session._predictor = predictor
        frames = FrameStream(predictor.model, predictor.settings, label_set=saved["label_set"], detect=saved["detect"])
        frames.size, frames.stream.size = saved["size"], saved["input_size"]
        device = predictor.model.device
        height, width = saved["state"]["masks"].shape[-2:]
        frames.stream.state = frames.stream._start(height, width)
        frames.stream.state.load_state_dict(saved["state"])
        session._frames = frames
        result = saved["result"]
        session.result = FrameResult(
            frame_index=frames.stream.state.frame_index,
            instances=Instances(saved["size"], **result["instances"]).to(device),
            id_map=result["id_map"].to(device),
        )
        return session

    @property
    def track_ids(self) -> list[int]:
        """Ids of the objects that are followed, hidden ones included."""
        return self._frames.stream.track_ids

    @property
    def label_set(self) -> str:
        """The label set that ``pred_classes`` refer to; :meth:`VideoPredictor.class_names` has its names."""
        return self._frames.stream.label_set

    def step(self, frame: np.ndarray) -> FrameResult:
        """The next frame, uint8 (H, W, 3), BGR.

        Raises:
            UserError: it is no frame, or of another size than the first. The session can go on with the next one.
        """
        self._finish(self._frames.step(self._predictor.as_input(frame)), {})
        return self.result

    def add(self, object_id: int, mask: np.ndarray | Tensor) -> None:
        """Follow one more object from the latest frame on, or correct one that is followed; updates :attr:`result`.

        Args:
            object_id: 1 or more; it is never renumbered.
            mask: bool or 0/1 uint8 (H, W), the object in the latest frame.

        Raises:
            UserError: a mask that cannot be used, or no free ID vector; then nothing has changed.
        """
        height, width = self.result.id_map.shape
        given = _checked({object_id: mask}, (height, width))
        self._frames.add(given)
        before, rest = self.result.instances, _without(self.result, object_id)
        is_it = before.track_ids == object_id
        device = before.scores.device
        pixels = torch.from_numpy(given[object_id]).to(device)
        one = Instances(
            (height, width),
            pred_masks=pixels[None],
            scores=torch.ones(1, device=device),
            pred_classes=before.pred_classes[is_it].sum()[None],  # as before, or 0
            track_ids=torch.tensor([object_id], device=device),
        )
        self.result = FrameResult(
            frame_index=rest.frame_index,
            instances=Instances.cat([rest.instances, one]),
            id_map=torch.where(pixels, object_id, rest.id_map).int(),
        )

    def remove(self, object_id: int) -> None:
        """Stop following an object; updates :attr:`result`.

        Raises:
            UserError: if it is not followed.
        """
        self._frames.stream.remove(object_id)
        self.result = _without(self.result, object_id)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is needed to go on with the next frame in another process; see :meth:`VideoPredictor.load`.

        Raises:
            UserError: if the file cannot be written.
        """
        state = self._frames.stream.state
        assert state is not None
        saved = {
            "format": _FORMAT,
            "weights": self._predictor.fingerprint,
            "label_set": self._frames.stream.label_set,
            "detect": self._frames.stream.detect,
            "size": self._frames.size,
            "input_size": self._frames.stream.size,
            "state": state.state_dict(),
            "result": {"instances": self.result.instances.get_fields(), "id_map": self.result.id_map},
        }
        try:
            with atomic_write(path) as temporary:
                torch.save(saved, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError when the disk is full
            raise UserError(f"{path}: cannot be written: {error}") from error

    def _finish(self, output: FrameOutput, given: Mapping[int, np.ndarray]) -> None:
        """The rows of a frame -> :attr:`result`."""
        detect = self._frames.stream.detect
        shown = shown_rows(output, self._predictor.settings.topk if detect else None)
        exact = {object_id: mask for object_id, mask in given.items() if object_id in output.given}
        logits = self._frames.logits(shown, exact)
        owner = winners(logits)
        masks = logits > 0
        listed = shown.prompted  # All of a result but its masks is known here, and goes to them without waiting.
        if not listed.all():  # a mask may have lain in the padding only
            listed = listed | masks.flatten(1).any(dim=1).cpu()
        listed = listed.nonzero()[:, 0]
        ids, mean = torch.tensor(shown.track_ids, dtype=torch.int64), shown.mean_probabilities
        scores = torch.where(shown.prompted, mean.sum(dim=1), mean.amax(dim=1)).float()
        known = {"scores": scores, "pred_classes": mean.argmax(dim=1), "track_ids": ids}
        instances = Instances(
            (masks.shape[1], masks.shape[2]),
            pred_masks=masks if len(listed) == len(masks) else masks[upload(listed, masks.device)],
            **{name: upload(each[listed], masks.device) for name, each in known.items()},
        )
        id_map = upload(F.pad(ids, (0, 1)).int(), masks.device)[owner]  # -1, background, looks up the 0 at the end
        self.result = FrameResult(output.frame_index, instances, id_map)


def _checked(prompts: Mapping[int, np.ndarray | Tensor], size: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Prompts -> bool (H, W) masks by id.

    Raises:
        UserError: naming the object and what is wrong with it.
    """
    checked = {}
    for object_id, mask in prompts.items():
        if isinstance(object_id, bool) or not isinstance(object_id, (int, np.integer)) or not 0 < object_id < 2**31:
            raise UserError(f"object id {object_id!r}: ids are whole numbers from 1 on")
        if isinstance(mask, Tensor):
            mask = mask.cpu().numpy()
        if not isinstance(mask, np.ndarray):
            raise UserError(f"object {object_id}: a prompt is a mask, a bool array (H, W); found {type(mask).__name__}")
        if mask.dtype not in (np.bool_, np.uint8) or mask.ndim != 2:
            raise UserError(f"object {object_id}: a mask is bool or 0/1 uint8 (H, W); found {mask.dtype} {mask.shape}")
        if mask.shape != size:
            raise UserError(
                f"object {object_id}: its mask is {mask.shape[1]}x{mask.shape[0]} pixels, the frame {size[1]}x{size[0]}"
            )
        if mask.max() > 1:
            raise UserError(f"object {object_id}: a uint8 mask holds 0 and 1; found {mask.max()}")
        if not mask.any():
            raise UserError(f"object {object_id}: its mask is empty")
        checked[int(object_id)] = mask.astype(bool)
    return checked


def _without(result: FrameResult, object_id: int) -> FrameResult:
    """The result with one object taken out; its pixels go to the surest of the others that cover them."""
    others = result.instances[result.instances.track_ids != object_id]
    freed = result.id_map == object_id
    id_map = torch.where(freed, 0, result.id_map)
    for row in others.scores.argsort().tolist():
        id_map = torch.where(freed & others.pred_masks[row], others.track_ids[row].int(), id_map)
    return FrameResult(result.frame_index, others, id_map)
