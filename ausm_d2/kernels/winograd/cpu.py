# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The 3 x 3 convolution by Winograd's F(4 x 4, 3 x 3): transforms in C++ (winograd.cpp), products by PyTorch. Without
gradients the products are those of linear.cpp, where that is faster.

Shape shorthand:
    BT: frames; C, C': channels before and after
    h, w: feature size
    N: tiles of 4 x 4 outputs of all frames
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cached_tensors import cache_tensors
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.linear import cpu as linear
from ausm_d2.kernels.packed import PackedWeights
from ausm_d2.kernels.structs import address, fields
from ausm_d2.kernels.winograd.call import Conv3x3Call

SOURCE = Path(__file__).with_name("winograd.cpp")

MIN_CHANNELS = 48  # with fewer, the transforms take as long as the products they save
MIN_TILES = 64
_G = (  # weights (3) -> factors (6)
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class _Image(ctypes.Structure):
    """``Image`` of winograd.cpp."""

    _fields_ = fields("B H W C", "threads reserved", (ctypes.c_void_p, "pixels tiles"))


class CpuWinograd(CppKernel[Conv3x3Call]):
    source = SOURCE

    def fits(self, call: Conv3x3Call) -> bool:
        lanes = cpp.library(SOURCE).ausm_winograd_lanes()
        channels = call.weight.shape[:2]
        batch, _, height, width = call.x.shape
        return (
            call.x.dtype == call.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and all(each % lanes == 0 for each in channels)
            and min(channels) >= MIN_CHANNELS
            and batch * _tiles(height) * _tiles(width) >= MIN_TILES
        )

    def run(self, call: Conv3x3Call) -> tuple[Tensor]:
        if call.learns() or not linear.is_faster():
            return (_Winograd.apply(call.x, call.weight),)
        products = linear.multiply(_to_tiles("gather", call.x), _packed_factors(call.weight), len(call.weight))
        return (_finish(products, call.x),)


def _tiles(side: int) -> int:
    return -(-side // 4)


def _convert(function: str, pixels: Tensor, tiles: Tensor) -> None:
    """Run a transform between channels-last ``pixels`` (BT, C, h, w) and ``tiles`` (36, N, C)."""
    batch, channels, height, width = pixels.shape
    image = _Image(
        B=batch,
        H=height,
        W=width,
        C=channels,
        threads=torch.get_num_threads(),
        pixels=address(pixels),
        tiles=address(tiles),
    )
    getattr(cpp.library(SOURCE), f"ausm_winograd_{function}")(ctypes.byref(image))


def _to_tiles(function: str, x: Tensor) -> Tensor:
    """(BT, C, h, w) -> (36, N, C)."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    tiles = x.new_empty(36, batch * _tiles(height) * _tiles(width), channels)
    _convert(function, x, tiles)
    return tiles


def _finish(products: Tensor, like: Tensor) -> Tensor:
    """(36, N, C') -> (BT, C', h, w), channels last."""
    shape = (len(like), products.shape[2], *like.shape[2:])
    y = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    _convert("finish", y, products)
    return y


@cache_tensors(maxsize=4)
def _kernel_transform(dtype: torch.dtype) -> Tensor:
    """(36, 9): G x G, which maps a flattened kernel to its factors."""
    with torch.inference_mode(False), torch.no_grad():  # training uses the cached tensor too
        g = torch.tensor(_G, dtype=torch.float64, device="cpu")
        return torch.kron(g, g).to(dtype)


def _factors(weight: Tensor) -> Tensor:
    """(C', C, 3, 3) -> (36, C, C'): G g G^T."""
    outputs, inputs = weight.shape[:2]
    factors = _kernel_transform(weight.dtype) @ weight.reshape(-1, 9).T
    return factors.view(36, outputs, inputs).transpose(1, 2)


_packed_factors = PackedWeights(lambda weight: linear.pack(_factors(weight).transpose(1, 2)))


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        tiles = _to_tiles("gather", x)
        ctx.save_for_backward(tiles if ctx.needs_input_grad[1] else None, weight)
        return _finish(torch.bmm(tiles, _factors(weight)), x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        tiles, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:  # the same convolution with the kernels turned round
            turned = _factors(weight.flip(2, 3).transpose(0, 1))
            dx = _finish(torch.bmm(_to_tiles("gather", dy), turned), dy)
        if ctx.needs_input_grad[1]:
            dfactors = torch.bmm(_to_tiles("spread", dy).transpose(1, 2), tiles)  # (36, C', C)
            dweight = (dfactors.flatten(1).T @ _kernel_transform(weight.dtype)).view(weight.shape)
        return dx, dweight
