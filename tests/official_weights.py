# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints as other projects write them, made of zeros or of another implementation's weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _pairs(name: str, weight: tuple[int, ...], bias: int | None = None) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": (weight[0] if bias is None else bias,)}


def swin_shapes(width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Swin inside a detector: a norm per stage, no classifier."""
    shapes = _pairs("patch_embed.proj", (width, 3, 4, 4)) | _pairs("patch_embed.norm", (width,))
    for i, depth in enumerate(depths):
        c = width << i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            shapes |= _pairs(f"{block}.norm1", (c,)) | _pairs(f"{block}.norm2", (c,))
            shapes[f"{block}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[i])
            shapes[f"{block}.attn.relative_position_index"] = (window**2, window**2)
            shapes |= _pairs(f"{block}.attn.qkv", (3 * c, c)) | _pairs(f"{block}.attn.proj", (c, c))
            shapes |= _pairs(f"{block}.mlp.fc1", (4 * c, c)) | _pairs(f"{block}.mlp.fc2", (c, 4 * c))
        if i < len(depths) - 1:
            shapes |= _pairs(f"layers.{i}.downsample.norm", (4 * c,))
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * c, 4 * c)
        shapes |= _pairs(f"norm{i}", (c,))
    return shapes


def mask2former_shapes(
    width: int, depths: Sequence[int], heads: Sequence[int], window: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Mask2Former's COCO instance checkpoints with a Swin."""
    shapes = {f"backbone.{name}": shape for name, shape in swin_shapes(width, depths, heads, window).items()}
    d, pixel, predictor = 256, "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    for level, stage in enumerate((3, 2, 1)):
        shapes |= _pairs(f"{pixel}.input_proj.{level}.0", (d, width << stage, 1, 1))
        shapes |= _pairs(f"{pixel}.input_proj.{level}.1", (d,))
    shapes[f"{pixel}.transformer.level_embed"] = (3, d)
    for i in range(6):
        layer = f"{pixel}.transformer.encoder.layers.{i}"
        shapes |= _pairs(f"{layer}.self_attn.sampling_offsets", (192, d))
        shapes |= _pairs(f"{layer}.self_attn.attention_weights", (96, d))
        for name in ("value_proj", "output_proj"):
            shapes |= _pairs(f"{layer}.self_attn.{name}", (d, d))
        shapes |= _pairs(f"{layer}.linear1", (1024, d)) | _pairs(f"{layer}.linear2", (d, 1024))
        shapes |= _pairs(f"{layer}.norm1", (d,)) | _pairs(f"{layer}.norm2", (d,))
    shapes[f"{pixel}.adapter_1.weight"] = (d, width, 1, 1)
    shapes[f"{pixel}.layer_1.weight"] = (d, d, 3, 3)
    shapes |= _pairs(f"{pixel}.adapter_1.norm", (d,)) | _pairs(f"{pixel}.layer_1.norm", (d,))
    shapes |= _pairs(f"{pixel}.mask_features", (d, d, 1, 1))
    for i in range(9):
        for kind, name in (("cross", "multihead_attn"), ("self", "self_attn")):
            layer = f"{predictor}.transformer_{kind}_attention_layers.{i}"
            shapes |= {f"{layer}.{name}.in_proj_weight": (768, d), f"{layer}.{name}.in_proj_bias": (768,)}
            shapes |= _pairs(f"{layer}.{name}.out_proj", (d, d)) | _pairs(f"{layer}.norm", (d,))
        layer = f"{predictor}.transformer_ffn_layers.{i}"
        shapes |= _pairs(f"{layer}.linear1", (2048, d)) | _pairs(f"{layer}.linear2", (d, 2048))
        shapes |= _pairs(f"{layer}.norm", (d,))
    shapes |= _pairs(f"{predictor}.decoder_norm", (d,)) | _pairs(f"{predictor}.class_embed", (81, d))
    for i in range(3):
        shapes |= _pairs(f"{predictor}.mask_embed.layers.{i}", (d, d))
    for name, rows in (("level_embed", 3), ("query_embed", 100), ("query_feat", 100)):
        shapes[f"{predictor}.{name}.weight"] = (rows, d)
    return shapes | {"criterion.empty_weight": (81,)}


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors without memory."""
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


# In order; the first ones shorten what the others go on with.
_TRANSFORMERS_TO_OFFICIAL = (
    (r"^model\.pixel_level_module\.encoder\.swin\.(encoder\.)?", "backbone."),
    (r"^model\.pixel_level_module\.encoder\.", "backbone."),
    (r"^model\.pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"^model\.transformer_module\.(decoder\.)?", "sem_seg_head.predictor."),
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
    # backbone
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.qkv", "attn.qkv"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"hidden_states_norms\.stage1", "norm0"),
    (r"hidden_states_norms\.stage2", "norm1"),
    (r"hidden_states_norms\.stage3", "norm2"),
    (r"hidden_states_norms\.stage4", "norm3"),
    # pixel decoder
    (r"pixel_decoder\.(level_embed|encoder)", r"pixel_decoder.transformer.\1"),
    (r"input_projections", "input_proj"),
    (r"mask_projection", "mask_features"),
    (r"(adapter_1|layer_1)\.0", r"\1"),
    (r"(adapter_1|layer_1)\.1", r"\1.norm"),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm", r"\1.norm1"),
    (r"(encoder\.layers\.\d+)\.final_layer_norm", r"\1.norm2"),
    (r"(encoder\.layers\.\d+)\.fc(\d)", r"\1.linear\2"),
    # masked-attention decoder
    (r"queries_embedder", "query_embed"),
    (r"queries_features", "query_feat"),
    (r"predictor\.layernorm", "predictor.decoder_norm"),
    (r"mask_predictor\.mask_embedder\.(\d)\.0", r"mask_embed.layers.\1"),
    (r"predictor\.layers\.(\d+)\.cross_attn\.", r"predictor.transformer_cross_attention_layers.\1.multihead_attn."),
    (r"predictor\.layers\.(\d+)\.cross_attn_layer_norm", r"predictor.transformer_cross_attention_layers.\1.norm"),
    (r"predictor\.layers\.(\d+)\.self_attn\.", r"predictor.transformer_self_attention_layers.\1.self_attn."),
    (r"predictor\.layers\.(\d+)\.self_attn_layer_norm", r"predictor.transformer_self_attention_layers.\1.norm"),
    (r"predictor\.layers\.(\d+)\.fc(\d)", r"predictor.transformer_ffn_layers.\1.linear\2"),
    (r"predictor\.layers\.(\d+)\.final_layer_norm", r"predictor.transformer_ffn_layers.\1.norm"),
    (r"in_proj\.(weight|bias)$", r"in_proj_\1"),
)


def official_mask2former(model: nn.Module) -> dict[str, Tensor]:
    """The weights of ``transformers``' Mask2Former with a Swin, under the names of the official checkpoints."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if "encoder.swin.layernorm." in name or name.endswith(
            ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias")
        ):
            continue  # not used by a segmenter; and k and v go with q
        if ".q_proj." in name:
            value = torch.cat([model.state_dict()[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("q_proj", "qkv" if ".swin." in name else "in_proj")
        for pattern, replacement in _TRANSFORMERS_TO_OFFICIAL:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    return state
