# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Exports the step of Alg. 1 as one ONNX graph for frames of one size.

The assignment of slots depends on the detections, so it is not part of the graph: ``runner.py`` does it.

Shape shorthand:
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding
    D: channels; h, w: feature size at stride 8 of the padded input; H4, W4: mask size at stride 4
    N_id: slots; N_det: detection queries; Q: N_id + N_det
    K: classes
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ausm_d2.errors import UserError
from ausm_d2.export.contract import INPUTS, KEY, OUTPUTS, StepSettings
from ausm_d2.io import atomic_write
from ausm_d2.kernels.cached_tensors import clear
from ausm_d2.kernels.choice import use_kernels
from ausm_d2.modeling.folding import with_plain_convolutions
from ausm_d2.modeling.network import AUSMNetwork, Memory
from ausm_d2.modeling.pixel_decoder import mask_confidence
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.settings import VideoSettings

logger = logging.getLogger(__name__)

OPSET = 18


class StepGraph(nn.Module):
    """:class:`~ausm_d2.streaming.step.FrameStep` as a function: the state is an argument and a result."""

    def __init__(self, network: AUSMNetwork, label_set: str, memory: Memory, *, confidence: bool) -> None:
        """
        Args:
            network: in evaluation mode.
            label_set: of all rows.
            memory: a template: as many tensors, in the same order.
            confidence: see :class:`~ausm_d2.streaming.step.FrameStep`.
        """
        super().__init__()
        self.network = network
        self._label_set = label_set
        self._template = memory
        self._confidence = confidence

    def forward(self, image: Tensor, ids: Tensor, masks: Tensor, x_prev: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: uint8 (3, H_in, W_in), RGB.
            ids: int64 (N_id): index of the ID vector of each slot, negative for free slots.
            masks: bool (N_id, H4, W4): M_{t-1}.
            x_prev: (D, h, w): X_{t-1}.
            memory: its tensors.

        Returns:
            report float32 (Q, K + 1), mask logits (Q, H4, W4), M_t of the tracked rows, X_t, and the memory; see
            :class:`~ausm_d2.streaming.step.StepOutput`.
        """
        values = iter(memory)
        network = self.network
        features = network.encode(network.normalise(image[None]))
        in_use = ids >= 0
        clip = features.map(lambda each: each[:, None])
        predictions, after = network.predict(
            x=clip.x,
            mask_features=clip.mask_features,
            levels=clip.multi_scale,
            pyramid=clip.pyramid,
            x_prev=x_prev[None, None],
            ids=network.id_pool(ids.clamp(min=0))[None],
            in_use=in_use[None, None],
            history=masks[None, None],
            label_sets=[self._label_set],
            memory=self._template.map(lambda _: next(values)),
            intermediate=False,
        )
        class_logits, mask_logits = predictions[-1].class_logits[0], predictions[-1].mask_logits[0]
        inside = mask_logits > 0
        visible = inside.flatten(1).any(dim=1, keepdim=True).float()
        if self._confidence:
            visible = mask_confidence(predictions[-1])
        report = torch.cat([class_logits.softmax(-1)[:, :-1], visible], dim=1)
        tracked = torch.logical_and(inside[: len(ids)], in_use[:, None, None])
        assert after is not None
        return report, mask_logits, tracked, features.x[0], *_tensors(after)


def _tensors(memory: Memory) -> Iterator[Tensor]:
    """All tensors of a memory, in the order of :meth:`Memory.map`."""
    found: list[Tensor] = []

    def visit(each: Tensor) -> Tensor:
        found.append(each)
        return each

    memory.map(visit)
    return iter(found)


def step_settings(predictor: VideoPredictor, size: tuple[int, int], label_set: str) -> StepSettings:
    """The settings that the driver needs.

    Args:
        size: (H, W).
    """
    settings, network = predictor.settings, predictor.model
    return StepSettings(
        size=size,
        input_size=settings.input_size(size),
        label_set=label_set,
        classes=predictor.class_names(label_set),
        num_id=network.id_pool.num_id,
        prompt_index=network.prompt_index,
        fg_threshold=settings.fg_threshold,
        hide_below=settings.hide_below,
        birth_iou=settings.birth_iou,
        track_score=settings.track_score,
        topk=settings.topk,
        seed=settings.seed,
        x_start=network.x_start.detach().tolist(),
    )


def export_step(predictor: VideoPredictor, size: tuple[int, int], label_set: str, path: Path) -> None:
    """Write the step as an ONNX file, with the weights in it.

    Args:
        predictor: on the CPU, in float32.
        size: (H, W) of the frames.
        label_set: of all rows.

    Raises:
        UserError: a package is missing, an operator cannot be exported, or the file cannot be written.
    """
    require_packages()
    network, settings = predictor.model, predictor.settings
    network.check_label_set(label_set)
    if left_out := rules_left_out(settings):
        logger.warning("the driver of the exported step does not apply TEST.AUSM keys %s", ", ".join(left_out))
    height, width = network.padded_size(*settings.input_size(size))
    memory = network.initial_memory((height, width))
    plain = cast(AUSMNetwork, with_plain_convolutions(network))
    graph = StepGraph(plain, label_set, memory, confidence=settings.track_score == "mask").eval()
    num_id, dim = network.id_pool.num_id, len(network.x_start)
    arguments = (
        torch.zeros(3, *settings.input_size(size), dtype=torch.uint8),
        torch.full((num_id,), -1),
        torch.zeros(num_id, height // 4, width // 4, dtype=torch.bool),
        torch.zeros(dim, height // 8, width // 8),
        *_tensors(memory),
    )
    names = [f"memory_{i}" for i in range(len(arguments) - len(INPUTS))]
    program = _traced(graph, arguments, [*INPUTS, *names], [*OUTPUTS, *(f"{name}_next" for name in names)])
    program.model.metadata_props[KEY] = json.dumps(asdict(step_settings(predictor, size, label_set)))
    with atomic_write(path) as temporary:
        program.save(str(temporary))


def rules_left_out(settings: VideoSettings) -> list[str]:
    """Keys of TEST.AUSM that are set, and that ``runner.py`` does not apply (:mod:`ausm_d2.streaming.gates`)."""
    in_use = {
        "BIRTH_CELLS": settings.birth_cells > 0,
        "DUPLICATE_OVERLAP": settings.duplicate_overlap < 1,
        "EXCLUSIVE": settings.exclusive,
        "REACH": settings.reach > 0,
        "APPEARANCE": settings.appearance > 0,
        "MIN_AGE": settings.min_age > 1,
    }
    return [key for key, used in in_use.items() if used]


def require_packages() -> None:
    """
    Raises:
        UserError: a package of the extra [export] is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'ausm_d2[export]'") from None


def _traced(graph: StepGraph, arguments: tuple[Any, ...], inputs: list[str], outputs: list[str]) -> Any:
    """The ONNX program. Custom kernels are replaced by their references in PyTorch's own operators."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with use_kernels("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph(*arguments)  # fills the caches of size-dependent tensors, which must not be tensors of the tracer
        try:
            return torch.onnx.export(
                graph,
                arguments,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), "")
            raise UserError(f"the step cannot be exported: {type(error).__name__}: {reason}") from error
        finally:
            clear()
