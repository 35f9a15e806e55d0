# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Prepares the weights for inference, in the same way for evaluation and predictor, so that their scores agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.precision import keep_weights_in
from ausm_d2.streaming.settings import VideoSettings


def prepare_for_inference(network: AUSMNetwork, settings: VideoSettings) -> Callable[[], None]:
    """With ``TEST.AUSM.AMP``, convert the weights to bfloat16 once, instead of in every frame by autocast.

    On CUDA the weights of norms and embeddings are rounded too: otherwise autocast keeps the features between a norm
    and the next linear layer in float32.

    Args:
        network: in evaluation mode; its weights are replaced in place.

    Returns:
        A function that restores the float32 weights, for a network that is trained further.
    """
    if not settings.amp:
        return lambda: None
    return keep_weights_in(network, torch.bfloat16, norms=network.device.type == "cuda")


@contextmanager
def prepared_for_inference(network: AUSMNetwork, settings: VideoSettings) -> Iterator[None]:
    """:func:`prepare_for_inference` inside the context only."""
    restore = prepare_for_inference(network, settings)
    try:
        yield
    finally:
        restore()
