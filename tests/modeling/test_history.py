# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""History Marker by its formula; Compressor and Decoder in both forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ausm_d2.modeling.history import HistoryCompressor, HistoryDecoder, HistoryMarker


def test_marker_is_the_formula_of_section_3() -> None:
    ids = torch.randn(2, 3, 8)
    masks = (torch.rand(2, 3, 8, 12) < 0.4).float()
    masks[:, :, :2, :2] = 0
    marked = HistoryMarker(eps=1e-3)(ids, masks)
    assert marked.shape == (2, 8, 4, 6)
    for b, y, x in [(0, 0, 0), (0, 1, 2), (1, 3, 5)]:
        cover = masks[b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dim=(1, 2))
        expected = (cover[:, None] * ids[b]).sum(0) / (1e-3 + cover.sum())
        torch.testing.assert_close(marked[b, :, y, x], expected)
    assert torch.equal(marked[:, :, 0, 0], torch.zeros(2, 8))


def test_marker_ignores_the_vectors_of_empty_rows_and_broadcasts_over_time() -> None:
    ids, masks = torch.randn(2, 3, 8), (torch.rand(2, 4, 3, 8, 12) < 0.4).float()
    masks[:, :, 2] = 0
    other = ids.clone()
    other[:, 2] = 100
    marker = HistoryMarker()
    assert torch.equal(marker(ids[:, None], masks), marker(other[:, None], masks))
    torch.testing.assert_close(marker(ids[:, None], masks)[:, 1], marker(ids, masks[:, 1]))


def compressor(spatial_reduction: int = 1) -> HistoryCompressor:
    """With non-zero branches, as after training (but for spatial attention)."""
    module = HistoryCompressor(
        16, num_layers=2, head_dim=8, dim_feedforward=24, d_state=4, spatial_reduction=spatial_reduction
    )
    for layer in module.layers:
        for branch in (layer.mamba.out_proj, layer.ffn.linear2):
            torch.nn.init.normal_(branch.weight)
    return module


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("spatial_reduction", [1, 2])
def test_compressor_at_once_equals_frame_by_frame(frames: int, spatial_reduction: int) -> None:
    module = compressor(spatial_reduction)
    for layer in module.layers:
        torch.nn.init.normal_(layer.self_attn.out_proj.weight)
    e = torch.randn(2, frames, 16, 3, 5)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            at_once, nothing = module(e)
            assert nothing is None
            states = module.init_states(2 * 15, device=e.device, dtype=e.dtype)
            steps = []
            for t in range(frames):
                f, states = module(e[:, t : t + 1], states, inplace=not recorded)
                steps.append(f)
            torch.testing.assert_close(torch.cat(steps, 1), at_once, rtol=1e-4, atol=1e-5)


def test_marks_pass_through_a_new_compressor() -> None:
    """Every branch starts at zero: F is the normalised E."""
    module = HistoryCompressor(16, num_layers=2, head_dim=8, dim_feedforward=24, d_state=4)
    e = torch.randn(1, 3, 16, 2, 2)
    expected = torch.nn.functional.layer_norm(e.movedim(2, -1), (16,)).movedim(-1, 2)
    torch.testing.assert_close(module(e)[0], expected)


def test_a_compressor_layer_is_mamba_then_attention_then_feed_forward_each_of_a_norm() -> None:
    """Against the layer written out: Mamba over time at every pixel, attention in every frame, feed-forward."""
    layer, pixels, frames, dim = compressor().layers[0], 6, 4, 16
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    x, position = torch.randn(2, pixels, frames, dim), torch.randn(pixels, dim)
    with torch.no_grad():
        found, _ = layer(x, position, (2, 3), None, False)

        def norm(values: torch.Tensor, of: torch.nn.Module) -> torch.Tensor:
            centred = values - values.mean(dim=-1, keepdim=True)
            return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * of.weight + of.bias

        expected = x.clone()
        for b in range(2):
            for p in range(pixels):
                expected[b, p] += layer.mamba(norm(x[b, p], layer.norm_time)[None])[0][0]
            for t in range(frames):
                tokens = expected[b, :, t]
                value = norm(tokens, layer.norm_space)
                query = value + position  # keys have the position too, values have not
                attn = layer.self_attn
                mixed, _ = F.multi_head_attention_forward(
                    *(query[:, None], query[:, None], value[:, None], dim, dim // attn.head_dim),
                    *(attn.in_proj_weight, attn.in_proj_bias, None, None, False, 0.0),
                    *(attn.out_proj.weight, attn.out_proj.bias),
                )
                tokens = tokens + mixed[:, 0]
                first, last = layer.ffn.linear1, layer.ffn.linear2
                hidden = F.relu(norm(tokens, layer.norm_ffn) @ first.weight.T + first.bias)
                expected[b, :, t] = tokens + hidden @ last.weight.T + last.bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_compressor_mixes_time_within_a_pixel_and_space_within_a_frame() -> None:
    """With its spatial attention set to zero, a pixel depends on its own past only."""
    module = compressor().eval()
    e = torch.randn(1, 3, 16, 2, 2, requires_grad=True)
    (module(e)[0][0, 1, :, 0, 1] * torch.randn(16)).sum().backward()
    assert e.grad is not None
    touched = e.grad[0].abs().sum(1) > 0
    assert touched.int().tolist() == [[[0, 1], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("self_attention", [True, False])
def test_decoder_frames_do_not_see_each_other(self_attention: bool) -> None:
    module = HistoryDecoder(16, num_layers=2, head_dim=8, dim_feedforward=24, self_attention=self_attention).eval()
    x, f = torch.randn(3, 16, 3, 5), torch.randn(3, 16, 3, 5)
    together = module(x, f)
    torch.testing.assert_close(together[1:2], module(x[1:2], f[1:2]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, module(x, f.flip(0)))


def test_what_the_decoder_gives_is_resized_with_channels_last() -> None:
    """Also for a single frame; otherwise every resizing copies it twice."""
    decoder = HistoryDecoder(8, num_layers=1, head_dim=4, dim_feedforward=8, spatial_reduction=2)
    g = decoder(torch.randn(1, 8, 4, 6), torch.randn(1, 8, 4, 6))
    assert F.interpolate(g, scale_factor=2, mode="bilinear").is_contiguous(memory_format=torch.channels_last)
