# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A trained model for use: frames in, masks out, like Detectron2's DefaultPredictor.

    predictor = VideoPredictor.from_pretrained("ausm_edge")     # or VideoPredictor(cfg)
    for result in predictor.stream(frames):            # unprompted; any iterator of frames
        ...
    session = predictor.start(first_frame, prompts={7: mask})
    result = session.step(frame)

Shape shorthand:
    H, W: size of the frames in pixels, as given
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.fingerprint import fingerprint
from ausm_d2.checkpoint.reading import require_whole
from ausm_d2.config import class_names, label_sets, pretrained_config
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.catalog.base import DEFAULT_TOPK
from ausm_d2.errors import UserError
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.ahead import EncodedFrame, encode_ahead
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.inference import prepare_for_inference
from ausm_d2.streaming.prompts import Prompts, check_object_id
from ausm_d2.streaming.result import FrameResult
from ausm_d2.streaming.session import FORMAT, Session, as_rgb
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream

logger = logging.getLogger(__name__)


class VideoPredictor:
    """Loads ``MODEL.WEIGHTS`` and segments any number of videos with them.

    Frames are uint8 (H, W, 3) BGR arrays, as OpenCV reads them. They are resized by ``INPUT.MIN_SIZE_TEST`` and
    ``MAX_SIZE_TEST``; masks have the size of the frames. Time per frame and memory do not grow with the video.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a complete config, such as :func:`~ausm_d2.config.load_config` returns.

        Raises:
            UserError: if weights are missing or do not fit, or a config value is invalid.
        """
        self.cfg = cfg.clone()
        if cfg.TEST.AUSM.REPEAT > 1 or cfg.TEST.AUSM.SPATIAL_TRAVERSAL:
            logger.warning("TEST.AUSM.REPEAT and SPATIAL_TRAVERSAL act in evaluation only: a stream sees a frame once")
        self.settings = VideoSettings.from_config(cfg)
        self.settings.topk = self.settings.topk or DEFAULT_TOPK
        # The network alone, without losses. Variants register a meta-architecture of their own.
        plain = cfg.MODEL.META_ARCHITECTURE == "AUSM"
        self.model: AUSMNetwork = (AUSMNetwork(cfg).to(cfg.MODEL.DEVICE) if plain else build_model(cfg)).eval()
        AUSMCheckpointer(self.model, complete=True).load(cfg.MODEL.WEIGHTS)
        if self.settings.amp and not cfg.MODEL.WEIGHTS:
            _ = self.fingerprint  # computed from the weights before they are rounded: the same on every device
        prepare_for_inference(self.model, self.settings)
        self.label_set: str = cfg.TEST.AUSM.LABEL_SET or next(iter(label_sets(cfg)))  # label set of detections

    @classmethod
    def from_pretrained(cls, name: str, opts: Sequence[Any] = ()) -> VideoPredictor:
        """A model whose weights come with the package: ``"ausm_edge"`` (real video) or ``"ausm_nano"`` (synthetic).

        Args:
            opts: alternating keys and values that replace those of its config, such as ``["MODEL.DEVICE", "cpu"]``.

        Raises:
            UserError: if the name or a key is unknown.
        """
        return cls(pretrained_config(name, opts))

    def stream(self, frames: Iterable[np.ndarray | EncodedFrame]) -> Iterator[FrameResult]:
        """Detect and track all objects of a video. Each result is yielded before the next frame is requested.

        Args:
            frames: uint8 (H, W, 3), BGR; or those of :meth:`ahead`, which is faster for files if two cores are free.

        Raises:
            UserError: if an item is not a frame, or not of the first frame's size.
        """
        session = None
        for frame in frames:
            if session is None:
                session = self.start(frame)
                yield session.result
            else:
                yield session.step(frame)

    def ahead(
        self, frames: Iterable[np.ndarray], given: Iterable[np.ndarray] = (), *, at_once: int | None = None
    ) -> Generator[EncodedFrame, None, None]:
        """The same frames, read and encoded ahead by a second thread. :meth:`stream`, :meth:`start` and
        :meth:`Session.step` take them in place of plain frames; masks are the same up to rounding. With
        ``OMP_NUM_THREADS=1`` it uses two cores fully.

        Args:
            frames: uint8 (H, W, 3), BGR; requested before they are needed.
            given: bool (H, W) masks that :meth:`start` will be called with; small ones enlarge the network's input.
            at_once: frames per batch of the encoder: 1 for a camera; None (for a file): as memory allows.

        Raises:
            UserError: if an item is not a frame, when that item is due.
        """
        return encode_ahead(self.model, self.settings, map(as_rgb, frames), given=given, at_once=at_once)

    def start(
        self, frame: np.ndarray | EncodedFrame, prompts: Prompts | None = None, discover: bool = False, above: int = 0
    ) -> Session:
        """Start a session with the first frame of a video.

        Args:
            frame: uint8 (H, W, 3), BGR; or the first one of :meth:`ahead`.
            prompts: the objects to track, by ids of the user's choice (1 or more): masks (bool or 0/1 uint8 (H, W)),
                or ``Box``, ``Points`` and ``Scribble`` of :mod:`ausm_d2.streaming.prompts`, one or several per object;
                see :meth:`Session.add`. Other objects are not detected. It may be empty, if objects are added later.
                There is no maximum: objects beyond the ID vectors are tracked in groups (streaming/groups.py).
                None: detect all objects.
            discover: also detect all other objects; their ids follow the prompted ones.
            above: detected objects get ids above it; lower ones are kept for objects that are prompted later.

        Raises:
            UserError: if the frame or a prompt is invalid.
        """
        detect = discover or prompts is None
        stream = Stream(
            self.model,
            self.settings,
            label_set=self.label_set if detect else self.settings.prompt_label_set,
            detect=detect,
            first_track_id=max([above, *(check_object_id(each) for each in prompts or {})]) + 1,
        )
        session = Session(GroupedStream(stream), topk=self.settings.topk, weights=lambda: self.fingerprint)
        session.begin(frame, prompts or {})
        return session

    def load(self, path: str | os.PathLike[str]) -> Session:
        """Load a session written by :meth:`Session.save`. It continues as if it had not been interrupted.

        Raises:
            UserError: if the file is missing, not a session, or was saved with other weights or settings.
        """
        require_whole(path)
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises half a dozen kinds
            raise UserError(f"{path}: not a saved session, or a damaged one") from error
        found = saved.get("format") if isinstance(saved, dict) else None
        if found != FORMAT:
            what = f"'{found}', saved by another version of this package" if found else "not a saved session"
            raise UserError(f"{path}: {what} ('{FORMAT}' expected)")
        if saved["weights"] != self.fingerprint:
            raise UserError(
                f"{path}: saved with other weights than {self.cfg.MODEL.WEIGHTS or 'these'}, or with other settings "
                "(MODEL, TEST.AUSM, INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST)"
            )
        try:
            return Session.from_saved(
                *(saved, self.model, self.settings), topk=self.settings.topk, weights=lambda: self.fingerprint
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a saved session, or a damaged one") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the settings that affect results."""
        return fingerprint(self.cfg, self.model)

    def class_names(self, label_set: str) -> list[str]:
        """Class names of a label set, from the config, or from its first data set that has the label set."""
        named = class_names(self.cfg).get(label_set)
        if named:
            return named
        register_from_config(self.cfg)
        for name in (*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN):
            if name in DatasetCatalog and MetadataCatalog.get(name).get("label_set") == label_set:
                names = MetadataCatalog.get(name).get("thing_classes", [])
                if len(names) == self.model.label_sets[label_set]:
                    return list(names)
        count = self.model.label_sets[label_set]
        return [label_set] if count == 1 else [f"{label_set} {i}" for i in range(count)]
