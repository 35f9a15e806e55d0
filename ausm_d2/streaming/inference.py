# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What evaluation and a predictor do to the weights before the first frame, so that both give the same scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.precision import keep_weights_in
from ausm_d2.streaming.settings import VideoSettings


def prepare_for_inference(network: AUSMNetwork, settings: VideoSettings) -> Callable[[], None]:
    """With ``TEST.AUSM.AMP``, round to bfloat16 once what autocast would otherwise convert in every frame: the weights.

    On CUDA the weights of norms and embeddings are rounded too: without that, autocast keeps the features between two
    linear layers in float32.

    Args:
        network: in evaluation mode; its weights are replaced in place.

    Returns:
        A function that puts the float32 weights back, for a network that goes on training.
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
