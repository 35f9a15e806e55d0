# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The network over training clips: parallel (all frames at once), iterative (frame by frame) and roll-out (frame by
frame, with the network's own masks as history).

Parallel and iterative compute the same function (outputs and gradients agree to 1e-4 in float32). Roll-out differs from
iterative only in the source of M_{t-1}.

Shape shorthand:
    B: clips; T: frames of a clip; BT: B * T frames, flattened into one axis
    N: rows of A
    D: channels
    H_pad, W_pad: padded image size in pixels; h, w: at stride 8; H4, W4: at stride 4
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.pixel_decoder import Predictions, stack_frames
from ausm_d2.training.criterion import SetCriterion
from ausm_d2.training.own_history import ClipInputs, history_after_passes, own_history
from ausm_d2.training.targets import ClipTargets
from ausm_d2.training.teacher_forcing import TeacherForcing


class ClipOutput(NamedTuple):
    """Output of the network for B clips of T frames."""

    layers: list[Predictions]  # by layer of the Pixel Decoder, over BT frames
    x: Tensor  # (B, T, D, h, w) X_t


def clip_inputs(
    network: AUSMNetwork, images: Tensor, ids: Tensor, forcing: TeacherForcing, label_sets: Sequence[str]
) -> ClipInputs:
    """What :meth:`AUSMNetwork.predict` reads of whole clips, except the history. Arguments as for :func:`parallel`."""
    clips = network.encode(images.flatten(0, 1)).map(lambda each: each.unflatten(0, images.shape[:2]))
    x = clips.x
    start = network.x_start.to(x.dtype)[:, None, None].expand(x.shape[0], 1, -1, *x.shape[-2:])
    return ClipInputs(
        x=x,
        mask_features=clips.mask_features,
        levels=clips.multi_scale,
        pyramid=clips.pyramid,
        x_prev=torch.cat([start, x[:, :-1]], dim=1),
        ids=ids,
        in_use=forcing.in_use,
        label_sets=label_sets,
    )


def parallel(
    network: AUSMNetwork,
    images: Tensor,
    ids: Tensor,
    forcing: TeacherForcing,
    label_sets: Sequence[str],
    *,
    own_passes: int = 0,
) -> ClipOutput:
    """Alg. 2: all frames of the clips at once.

    Args:
        images: (B, T, 3, H_pad, W_pad), normalised.
        ids: (B, N, D) ID vectors.
        forcing: history and targets of every frame.
        label_sets: name of the label set of each clip.
        own_passes: passes without gradients that first replace the history by the network's own masks
            (docs/deviations.md, 10).
    """
    inputs = clip_inputs(network, images, ids, forcing, label_sets)
    history = history_after_passes(network, inputs, forcing.history, own_passes)
    layers, _ = network.predict(**vars(inputs), history=history)
    return ClipOutput(layers, inputs.x)


def iterative(
    network: AUSMNetwork,
    images: Tensor,
    ids: Tensor,
    forcing: TeacherForcing,
    label_sets: Sequence[str],
    *,
    history_after: Callable[[int, Predictions], Tensor] | None = None,
) -> ClipOutput:
    """:func:`parallel` frame by frame, with gradients through the memory (Fig. 4's baseline; docs/deviations.md, 13).

    Args:
        images, ids, forcing, label_sets: as for :func:`parallel`.
        history_after: maps frame index t (from 0) and the last layer's predictions for it to the history of the next
            frame, (B, N, H4, W4); None: the history of ``forcing``.
    """
    batch, frames = images.shape[:2]
    features = network.encode(images[:, 0])
    x_prev = network.x_start.to(features.x.dtype)[:, None, None].expand_as(features.x)
    memory = network.initial_memory((images.shape[-2], images.shape[-1]), clips=batch, dtype=features.x.dtype)
    history = forcing.history[:, 0]
    xs: list[Tensor] = []
    steps: list[list[Predictions]] = []
    for t in range(frames):
        if t > 0:
            features = network.encode(images[:, t])
        clip = features.map(lambda each: each[:, None])
        layers, after = network.predict(
            x=clip.x,
            mask_features=clip.mask_features,
            levels=clip.multi_scale,
            pyramid=clip.pyramid,
            x_prev=x_prev[:, None],
            ids=ids,
            in_use=forcing.in_use[:, t, None],
            history=history[:, None],
            label_sets=label_sets,
            memory=memory,
        )
        assert after is not None
        memory, x_prev = after, features.x
        xs.append(features.x)
        steps.append(layers)
        if t + 1 < frames:
            history = history_after(t, layers[-1]) if history_after else forcing.history[:, t + 1]
    layers = [stack_frames(layer) for layer in zip(*steps, strict=True)]
    return ClipOutput(layers, torch.stack(xs, dim=1))


def rollout(
    network: AUSMNetwork,
    images: Tensor,
    ids: Tensor,
    forcing: TeacherForcing,
    label_sets: Sequence[str],
    *,
    targets: ClipTargets,
    prompted: Tensor,
    criterion: SetCriterion,
) -> ClipOutput:
    """:func:`iterative` with the network's own detached masks as history (docs/deviations.md, 10).

    Args:
        images, ids, forcing, label_sets: as for :func:`parallel`.
        targets: ground truth.
        prompted: bool (B): prompted clips.
        criterion: its matcher assigns instances to detections.
    """
    history_after = partial(own_history, forcing=forcing, targets=targets, prompted=prompted, criterion=criterion)
    return iterative(network, images, ids, forcing, label_sets, history_after=history_after)
