# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Folds frozen batch norms into the convolutions before them: one operation for convolution, norm and activation.

Parameters and buffers keep their names, so checkpoints are unaffected.

Shape shorthand:
    BT: frames
    C, C': channels before and after a convolution; G: its groups
    k: side of its kernel
    h, w and h', w': feature size before and after
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from timm.layers.padding import get_same_padding, pad_same
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops.misc import FrozenBatchNorm2d

from ausm_d2.kernels.choice import KernelLayer
from ausm_d2.kernels.depthwise import depthwise_conv
from ausm_d2.kernels.linear import LINEAR, LinearCall

_FROZEN = (FrozenBatchNormAct2d, FrozenBatchNorm2d)
# Activations that are a clamp, which convolutions can do: its limits, and oneDNN's name and arguments for it.
_FUSED: dict[type[nn.Module], tuple[tuple[float, float], str, list[float]]] = {
    nn.Identity: ((-math.inf, math.inf), "none", []),
    nn.ReLU: ((0.0, math.inf), "relu", []),
    nn.ReLU6: ((0.0, 6.0), "hardtanh", [0.0, 6.0]),
}


class _Uses(TorchFunctionMode):
    """Counts how many operations use each watched tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[Tensor, int]] = {}  # keeps the tensor alive, so that its id is not reused

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, (Tensor, list, tuple)) and not isinstance(out, torch.Size):
            flat = [each for arg in args for each in (arg if isinstance(arg, (list, tuple)) else (arg,))]
            for each in [*flat, *(kwargs or {}).values()]:
                if id(each) in self.watched:
                    tensor, count = self.watched[id(each)]
                    self.watched[id(each)] = tensor, count + 1
        return out


def find_pairs(net: nn.Module, example: Tensor) -> dict[str, str]:
    """Find the convolutions whose output is used by a batch norm only.

    Args:
        net: run once on ``example``; fast on PyTorch's meta device.
        example: (BT, 3, h, w).

    Returns:
        Name of the norm by name of the convolution.
    """
    uses, made, pairs, handles = _Uses(), dict[int, str](), dict[str, str](), list[Any]()
    names = {module: name for name, module in net.named_modules()}

    def after(module: nn.Module, args: Any, out: Tensor) -> None:
        uses.watched[id(out)] = out, 0
        made[id(out)] = names[module]

    def before(module: nn.Module, args: tuple[Tensor]) -> None:
        conv = made.get(id(args[0]))
        if conv is not None:
            pairs[conv] = names[module]

    for module in names:
        if type(module) in (nn.Conv2d, Conv2dSame):
            handles.append(module.register_forward_hook(after))
        elif isinstance(module, (nn.BatchNorm2d, *_FROZEN)):
            handles.append(module.register_forward_pre_hook(before))
    try:
        with uses, torch.no_grad():
            net(example)
    finally:
        for handle in handles:
            handle.remove()
    used = {name: uses.watched[key][1] for key, name in made.items()}
    return {conv: norm for conv, norm in pairs.items() if used[conv] == 1}


def fold_frozen_norms(net: nn.Module, pairs: dict[str, str]) -> None:
    """Fold each norm into its convolution, in place.

    Args:
        pairs: from :func:`find_pairs`. Pairs whose norm is not frozen are left unchanged.
    """
    for conv_name, norm_name in pairs.items():
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        if isinstance(norm, _FROZEN) and type(getattr(norm, "drop", None)) in (nn.Identity, type(None)):
            conv.__class__ = FoldedConv2dSame if isinstance(conv, Conv2dSame) else FoldedConv2d
            conv._norm, conv._cached = (norm,), None  # type: ignore[assignment]  # a tuple: no submodule
            conv._packed = None  # type: ignore[assignment]
            norm.__class__ = _Folded


def with_plain_convolutions(net: nn.Module) -> nn.Module:
    """A copy for inference without this module's classes: convolutions have the folded weights, norms are activations.

    ``torch.export`` cannot trace the cached weights.
    """
    net = copy.deepcopy(net)
    folded = [module for module in net.modules() if isinstance(module, FoldedConv2d)]
    activations = {}
    for conv in folded:
        folding, (norm,) = conv._fold(()), conv._norm
        activations[norm] = getattr(norm, "act", None) or nn.Identity()
        plain: type[nn.Conv2d] = Conv2dSame if isinstance(conv, FoldedConv2dSame) else nn.Conv2d
        conv.__class__ = plain  # type: ignore[assignment]
        conv.weight = nn.Parameter(folding.weight.contiguous(), requires_grad=False)
        conv.bias = nn.Parameter(folding.bias, requires_grad=False)
        del conv._norm, conv._cached, conv._packed
    for name, module in list(net.named_modules()):
        if module in activations:
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, activations[module])
    return net


class _Folded(nn.Module):
    """A norm that was folded into the convolution before it. Keeps its buffers and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Folding(NamedTuple):
    """Folded weights, and what they were made of."""

    key: tuple[Any, ...]
    weight: Tensor  # (C', C / G, k, k), channels last
    bias: Tensor  # (C')
    planes: Tensor | None  # (k, k, C') of a depthwise convolution


class FoldedConv2d(KernelLayer, nn.Conv2d):
    """A convolution, the frozen norm after it and the activation, as one operation.

    The folded weights (channels last) are cached until the weights or the norm change. If gradients of the weights are
    recorded, they are recomputed in every call.
    """

    _norm: tuple[nn.Module]
    _cached: Folding | None
    _packed: tuple[tuple[Any, ...], Tensor] | None  # the weights in oneDNN's own layout, for inputs of one shape

    def __getstate__(self) -> dict[str, Any]:
        """Without the caches: tensors of oneDNN can be neither copied nor pickled."""
        return {**self.__dict__, "_cached": None, "_packed": None}

    def forward(self, x: Tensor) -> Tensor:
        """(BT, C, h, w) -> (BT, C', h', w')."""
        folding = self.folding()
        weight, bias = folding.weight, folding.bias
        activation = getattr(self._norm[0], "act", None) or nn.Identity()
        recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if not recorded and type(activation) in _FUSED and _fuses(x, weight):
            (low, high), name, numbers = _FUSED[type(activation)]
            if folding.planes is not None:
                padding, stride = self.sides(x), self.stride[0]
                return depthwise_conv(
                    x, folding.planes, bias, stride=stride, padding=padding, low=low, high=high, kernels=self.kernels
                )
            if self.is_pointwise():
                rows = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
                call = LinearCall(rows, weight[:, :, 0, 0], bias, low, high)
                product = LINEAR.choose(call, self.kernels)
                if product is not LINEAR.reference:  # oneDNN's convolution is faster than that
                    return product(call)[0].permute(0, 3, 1, 2)
            x, around = self._padded(x)
            geometry = around, self.stride, self.dilation, self.groups
            packed = self._packed_for(x, folding)
            return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, name, numbers, "")
        x, around = self._padded(x)
        return activation(F.conv2d(x, weight, bias, self.stride, around, self.dilation, self.groups))

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return x, cast(tuple[int, int], self.padding)

    def sides(self, x: Tensor) -> tuple[int, int, int, int]:
        """Padding at the left, right, top and bottom."""
        vertical, horizontal = cast(tuple[int, int], self.padding)
        return horizontal, horizontal, vertical, vertical

    def _packed_for(self, x: Tensor, folding: Folding) -> Tensor:
        """The weights as oneDNN wants them for inputs of this shape; otherwise it converts them in every call."""
        if not folding.key:
            return folding.weight
        key, kept = (folding.key, x.shape), self._packed
        if kept is None or kept[0] != key:
            around = (0, 0) if isinstance(self, FoldedConv2dSame) else self.padding
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub has no size of the input
            with torch.inference_mode(False), torch.no_grad():
                weight = folding.weight.to_mkldnn()
                packed = reorder(weight, around, self.stride, self.dilation, self.groups, list(x.shape))
            self._packed = kept = key, packed  # another thread may replace it at any time
        return kept[1]

    def folding(self) -> Folding:
        """The folded weights, cached where their gradients are not recorded."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self._fold(())
        norm = self._norm[0]
        sources = [self.weight, self.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        tensors = [cast(Tensor, each) for each in sources if each is not None]
        if any(each.is_inference() for each in tensors):  # inference tensors have no version counter
            return self._fold(())
        key = tuple((each.data_ptr(), each._version) for each in tensors)
        cached = self._cached
        if cached is None or cached.key != key:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = cached = self._fold(key)
        return cached

    def _fold(self, key: tuple[Any, ...]) -> Folding:
        norm: Any = self._norm[0]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        weight = (self.weight * scale[:, None, None, None]).to(self.weight.dtype)
        weight, bias = weight.contiguous(memory_format=torch.channels_last), bias.to(self.weight.dtype)
        return Folding(key, weight, bias, weight[:, 0].permute(1, 2, 0).contiguous() if self._is_depthwise() else None)

    def limits(self) -> tuple[float, float] | None:
        """Limits of the activation, if it is a clamp."""
        activation = type(getattr(self._norm[0], "act", None) or nn.Identity())
        return _FUSED[activation][0] if activation in _FUSED else None

    def is_pointwise(self) -> bool:
        """Whether this is a linear layer at every pixel."""
        one = self.kernel_size == self.stride == (1, 1) and self.groups == 1
        return one and (isinstance(self, FoldedConv2dSame) or self.padding in ((0, 0), "valid", "same"))

    def _is_depthwise(self) -> bool:
        one = self.kernel_size[0] == self.kernel_size[1] and self.stride[0] == self.stride[1]
        one = one and self.dilation == (1, 1) and not isinstance(self.padding, str)
        one = one and self.out_channels % 16 == 0  # whole vectors of every processor; others are left to oneDNN
        return one and 1 < self.groups == self.in_channels == self.out_channels


class FoldedConv2dSame(FoldedConv2d):
    """The same for timm's ``Conv2dSame``, which pads like TensorFlow."""

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), (0, 0)

    def sides(self, x: Tensor) -> tuple[int, int, int, int]:
        sums = [get_same_padding(x.shape[-i], self.kernel_size[-i], self.stride[-i], 1) for i in (1, 2)]
        (left, right), (top, bottom) = ((each // 2, each - each // 2) for each in sums)
        return left, right, top, bottom


def _fuses(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can run convolution and activation in one call."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and x.numel() > 0
    )
