# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The Mamba layer: parameters and function of mamba_ssm's, clip against frame by frame, AMP, checkpointing."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.conv.mamba_ssm import MambaSsmConv
from ausm_d2.kernels.scan.mamba_ssm import MambaSsmScan
from ausm_d2.modeling.ssm import Mamba


def _relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _float64_mamba(layer: Mamba, x: Tensor) -> Tensor:
    """(N, T, D) -> (N, T, D): the layer written out frame by frame, state by state, from its definition."""
    p = {name: value.double() for name, value in layer.named_parameters()}
    x = x.double()
    inner, size, width = layer.d_inner, layer.d_state, layer.d_conv
    past = [torch.zeros(len(x), inner, dtype=torch.float64)] * width
    state = torch.zeros(len(x), inner, size, dtype=torch.float64)
    outputs = []
    for t in range(x.shape[1]):
        u, z = (x[:, t] @ p["in_proj.weight"].T).split(inner, dim=-1)
        past = [*past[1:], u]
        conv = p["conv1d.bias"] + sum(past[k] * p["conv1d.weight"][:, 0, k] for k in range(width))
        u = conv * torch.sigmoid(conv)
        dt, B, C = (u @ p["x_proj.weight"].T).split([layer.dt_rank, size, size], dim=-1)
        delta = F.softplus(dt @ p["dt_proj.weight"].T + p["dt_proj.bias"])[:, :, None]
        state = torch.exp(-delta * p["A_log"].exp()) * state + delta * B[:, None] * u[:, :, None]
        y = (state * C[:, None]).sum(-1) + p["D"] * u
        outputs.append((y * z * torch.sigmoid(z)) @ p["out_proj.weight"].T)
    return torch.stack(outputs, dim=1)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """mamba_ssm's own module with its reference scan instead of its kernels; its Python source is enough.

    That is what pip installs with MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE --no-build-isolation --no-deps.
    """
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None or importlib.util.find_spec("einops") is None or importlib.util.find_spec("triton") is None:
        pytest.skip("the Python source of mamba_ssm (with einops and triton) is not installed")
    package = ModuleType("mamba_ssm")  # its own __init__ imports more than the layer
    package.__path__ = list(spec.submodule_search_locations or [])
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    if importlib.util.find_spec("selective_scan_cuda") is None:
        monkeypatch.setitem(sys.modules, "selective_scan_cuda", ModuleType("selective_scan_cuda"))
    module = importlib.import_module("mamba_ssm.modules.mamba_simple")
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    monkeypatch.setattr(module, "selective_scan_fn", scan.selective_scan_ref)
    for name in ("causal_conv1d_fn", "causal_conv1d_update", "selective_state_update"):
        monkeypatch.setattr(module, name, None)
    return module


def test_layer_is_that_of_mamba_ssm(reference: ModuleType) -> None:
    """Initial values from the same seed, outputs, gradients, and the caches after a clip and after single steps."""
    torch.manual_seed(3)
    theirs = reference.Mamba(48, use_fast_path=False)
    torch.manual_seed(3)
    layer = Mamba(48)
    for (name, expected), (_, found) in zip(
        sorted(theirs.named_parameters()), sorted(layer.named_parameters()), strict=True
    ):
        assert torch.equal(found, expected), name
    layer.load_state_dict(theirs.state_dict())
    x, dy = torch.randn(5, 7, 48), torch.randn(5, 7, 48)
    found, state = layer(x)
    expected = theirs(x)
    assert _relative(found, expected) < 1e-5
    (found * dy).sum().backward()
    (expected * dy).sum().backward()
    for name, parameter in theirs.named_parameters():
        assert _relative(layer.get_parameter(name).grad, parameter.grad) < 1e-4, name
    with torch.no_grad():
        conv, ssm = theirs.allocate_inference_cache(5, 7)
        for t in range(7):
            expected, conv, ssm = theirs.step(x[:, t : t + 1], conv, ssm)
            assert _relative(found[:, t : t + 1], expected) < 1e-5
        assert state.conv.shape == conv.shape and state.ssm.shape == ssm.shape
        assert _relative(state.conv, conv) < 1e-5 and _relative(state.ssm, ssm) < 1e-5


def test_its_kernels_are_called_with_what_they_expect(reference: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reference functions stand in for its kernels, which have the same signatures."""
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    update = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    monkeypatch.setattr(scan, "selective_scan_fn", scan.selective_scan_ref)
    monkeypatch.setattr(update, "selective_state_update", update.selective_state_update_ref)
    for kernel in (MambaSsmScan, MambaSsmConv):
        monkeypatch.setattr(kernel, "devices", ("cpu",))
        monkeypatch.setattr(kernel, "unavailable", lambda self: None)
    monkeypatch.setattr(MambaSsmConv, "fits", lambda self, call: False)  # that is causal_conv1d's
    layer = Mamba(24)
    x = torch.randn(3, 5, 24)
    expected, expected_state = layer(x)
    weight = torch.randn(3, 48, 16)
    (expected.sum() + (expected_state.ssm * weight).sum()).backward()
    wanted = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    with use_kernels("mamba_ssm"):
        found, state = layer(x)
        assert _relative(found, expected) < 1e-5 and _relative(state.ssm, expected_state.ssm) < 1e-5
        (found.sum() + (state.ssm * weight).sum()).backward()
        for parameter, gradient in zip(layer.parameters(), wanted, strict=True):
            assert _relative(parameter.grad, gradient) < 1e-4
        with torch.no_grad():
            state = layer.init_state(3)
            for t in range(5):
                y, _ = layer.step(x[:, t], state, inplace=True)
    assert _relative(y, expected[:, -1]) < 1e-5 and _relative(state.ssm, expected_state.ssm) < 1e-5


def test_parameters_are_those_of_mamba_ssm() -> None:
    layer = Mamba(256)
    assert {name: tuple(value.shape) for name, value in layer.named_parameters()} == {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 256),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (48, 512),
        "dt_proj.weight": (512, 16),
        "dt_proj.bias": (512,),
        "out_proj.weight": (256, 512),
    }
    assert sum(value.numel() for value in layer.parameters()) == 437_760
    assert Mamba(20).dt_rank == 2  # rounded up


def test_initial_values() -> None:
    layer = Mamba(64)
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert (layer.D == 1).all()
    dt = F.softplus(layer.dt_proj.bias)
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 1e-1 * 1.001
    # Uniform in the logarithm: the median lies near the geometric mean.
    assert abs(dt.log().median().item() - math.log(1e-2)) < 0.8
    assert layer.dt_proj.weight.abs().max() <= layer.dt_rank**-0.5


@pytest.mark.parametrize("frames", range(1, 9))
def test_clip_equals_float64_loop(frames: int) -> None:
    layer = Mamba(24, d_state=8)
    x = torch.randn(5, frames, 24)
    assert _relative(layer(x)[0], _float64_mamba(layer, x)) < 1e-5


def test_gradients_equal_float64_loop() -> None:
    layer = Mamba(24, d_state=8)
    oracle = copy.deepcopy(layer)
    x = torch.randn(5, 6, 24, requires_grad=True)
    x64 = x.detach().clone().requires_grad_()
    weight = torch.randn(5, 6, 24)
    (layer(x)[0] * weight).sum().backward()
    (_float64_mamba(oracle, x64) * weight).sum().backward()
    assert _relative(x.grad, x64.grad) < 1e-4
    for (name, found), expected in zip(layer.named_parameters(), oracle.parameters(), strict=True):
        assert _relative(found.grad, expected.grad) < 1e-4, name


@pytest.mark.parametrize("frames", range(1, 9))
def test_frame_by_frame_equals_clip(frames: int) -> None:
    """Values and gradients; the gradients of the frame loop flow through the state."""
    layer = Mamba(24, d_state=8)
    single = copy.deepcopy(layer)
    x = torch.randn(3, frames, 24)
    expected, state_expected = layer(x)
    expected.square().sum().backward()
    state = single.init_state(3)
    outputs = []
    for t in range(frames):
        y, state = single.step(x[:, t], state, inplace=False)
        outputs.append(y)
    found = torch.stack(outputs, dim=1)
    found.square().sum().backward()
    assert _relative(found, expected) < 1e-5
    assert _relative(state.ssm, state_expected.ssm) < 1e-5 and _relative(state.conv, state_expected.conv) < 1e-5
    for (name, value), reference in zip(single.named_parameters(), layer.parameters(), strict=True):
        assert _relative(value.grad, reference.grad) < 1e-4, name


def test_clip_in_two_parts_equals_clip() -> None:
    layer = Mamba(24)
    x = torch.randn(3, 7, 24)
    first, state = layer(x[:, :2])
    second, _ = layer(x[:, 2:], state)
    assert _relative(torch.cat([first, second], dim=1), layer(x)[0]) < 1e-5


@torch.no_grad()
def test_step_in_place_overwrites_the_state_and_nothing_else() -> None:
    layer = Mamba(24)
    state = layer.init_state(3)
    expected_state = layer.init_state(3)
    for _ in range(6):
        x = torch.randn(3, 24)
        expected, expected_state = layer.step(x, expected_state, inplace=False)
        found, new_state = layer.step(x, state, inplace=True)
        assert new_state.ssm.data_ptr() == state.ssm.data_ptr() and new_state.conv.data_ptr() == state.conv.data_ptr()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(state.ssm, expected_state.ssm)
        torch.testing.assert_close(state.conv, expected_state.conv)


def test_no_sequences() -> None:
    y, state = Mamba(24)(torch.zeros(0, 3, 24))
    assert y.shape == (0, 3, 24) and state.ssm.shape == (0, 48, 16) and state.conv.shape == (0, 48, 4)


def test_checkpointing_changes_nothing() -> None:
    layer = Mamba(24)
    other = copy.deepcopy(layer)
    x = torch.randn(3, 4, 24)
    layer(x)[0].sum().backward()
    checkpoint(other, x, use_reentrant=False)[0].sum().backward()
    for found, expected in zip(other.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_autocast() -> None:
    """Activations in bf16, the state in float32, gradients for every parameter."""
    layer = Mamba(32)
    x = torch.randn(4, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
        y2, _ = layer(x, state)
    assert y.dtype == torch.bfloat16 and state.ssm.dtype == torch.float32 and state.conv.dtype == torch.bfloat16
    assert _relative(y, _float64_mamba(layer, x)) < 0.03
    y2.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
