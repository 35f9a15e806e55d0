# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Any feature pyramid of timm's model zoo as a registered Detectron2 backbone.

timm is imported when a backbone is built: it takes most of a second, which models with other backbones do not need.

Shape shorthand:
    BT: frames
    H_pad, W_pad: padded image size in pixels
    C_2 .. C_5: channels of the outputs
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from ausm_d2.errors import UserError

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(Backbone):
    """A ``features_only`` model of timm, its outputs named by their strides: ``res2`` (4) .. ``res5`` (32).

    Its batch norms are frozen: the statistics of a batch would pass information between frames in training.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: tuple[str, ...] = tuple(_STRIDES),
        in_channels: int = 3,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            name: a model of timm, with random weights.
            out_features: outputs to return, finest first.
            in_channels: channels of the images.
            freeze_at: freeze the weights up to output ``res<freeze_at>``; 0: train all (Detectron2's
                MODEL.BACKBONE.FREEZE_AT).

        Raises:
            UserError: if timm has no such model, or the model no such outputs.
        """
        import timm

        super().__init__()
        unknown = sorted(set(out_features) - set(_STRIDES))
        if unknown:
            raise UserError(f"out_features: unknown {unknown}, expected some of {list(_STRIDES)}")
        try:
            strides = _output_strides(name)
        except (RuntimeError, AttributeError) as error:  # unknown model, or one without features_only
            raise UserError(f"MODEL.TIMM.NAME: timm has no '{name}' that returns features: {error}") from error
        missing = [f"{key} (stride {_STRIDES[key]})" for key in out_features if _STRIDES[key] not in strides]
        if missing:
            raise UserError(f"MODEL.TIMM.NAME: '{name}' has outputs of strides {strides}, missing are {missing}")
        last = {stride: index for index, stride in enumerate(strides)}
        indices = tuple(last[_STRIDES[key]] for key in out_features)
        net: Any = timm.create_model(name, features_only=True, out_indices=indices, in_chans=in_channels)
        net = _freeze_norms(net, _pairs(name, indices, in_channels))
        if freeze_at:
            if f"res{freeze_at}" not in out_features:
                raise UserError(
                    f"MODEL.BACKBONE.FREEZE_AT: {freeze_at}, expected 0 or the number in one of {out_features}"
                )
            _freeze(net, out_features.index(f"res{freeze_at}"))
        # Convolutions on a CPU are faster in this layout (EfficientNet-Lite0, forward and backward: 1.3 s, else 1.9 s).
        self.net = net.to(memory_format=torch.channels_last)
        self._channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        self._out_features = list(out_features)
        self._out_feature_strides = {key: _STRIDES[key] for key in out_features}
        self._out_feature_channels = dict(zip(out_features, net.feature_info.channels(), strict=True))

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def train(self, mode: bool = True) -> TimmBackbone:
        """A fully frozen backbone stays in evaluation mode, without stochastic depth."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(BT, 3, H_pad, W_pad) -> ``{"res2": (BT, C_2, H_pad/4, W_pad/4), .., "res5": (BT, C_5, ..)}``."""
        outputs = self.net(x.contiguous(memory_format=torch.channels_last))
        if self._channels_last:
            outputs = [output.permute(0, 3, 1, 2).contiguous() for output in outputs]
        return dict(zip(self._out_features, outputs, strict=True))


@cache
def _output_strides(name: str) -> list[int]:
    """Of the outputs of a model of timm."""
    import timm

    with torch.device("meta"):
        probe: Any = timm.create_model(name, features_only=True)
        return probe.feature_info.reduction()


@cache
def _pairs(name: str, indices: tuple[int, ...], in_channels: int) -> dict[str, str]:
    """:func:`~ausm_d2.modeling.folding.find_pairs` of the model with its batch norms as they are.

    Args:
        indices: of the outputs.
    """
    import timm

    from ausm_d2.modeling.folding import find_pairs

    with torch.device("meta"):
        probe: Any = timm.create_model(name, features_only=True, out_indices=indices, in_chans=in_channels)
    return find_pairs(probe, torch.zeros(1, in_channels, 64, 64, device="meta"))


def _freeze_norms(net: Any, pairs: dict[str, str]) -> Any:
    """The network with frozen batch norms, folded where that is possible; ``pairs``: from :func:`_pairs`."""
    from timm.layers import freeze_batch_norm_2d

    from ausm_d2.modeling.folding import fold_frozen_norms
    from ausm_d2.modeling.inverted_residual import join_blocks

    net = freeze_batch_norm_2d(net)
    fold_frozen_norms(net, pairs)
    join_blocks(net)
    return net


def _freeze(net: Any, index: int) -> None:
    """Freeze the parameters up to output ``index`` of a feature pyramid."""
    module = f"{net.feature_info.module_name()[index]}.".replace("_", ".")  # some models have stages_0 for stages.0
    names = [name.replace("_", ".") for name, _ in net.named_parameters()]
    end = max(i for i, name in enumerate(names) if name.startswith(module))
    for parameter in [*net.parameters()][: end + 1]:
        parameter.requires_grad_(False)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone from ``MODEL.TIMM``; ``MODEL.WEIGHTS`` holds its weights, as those of the whole model."""
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        in_channels=input_shape.channels or 3,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
