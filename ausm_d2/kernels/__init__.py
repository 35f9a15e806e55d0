# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Operations with kernels: each has a reference in plain PyTorch, which defines it and runs everywhere, and faster
implementations. Nothing here imports the layers that use it.

| Operation | reference | cpu (C++) | triton | mamba_ssm |
| --- | --- | --- | --- | --- |
| selective scan (scan/) | loop over frames | with gradients | with gradients | without a state; single steps |
| causal convolution (conv/) | sum of shifted frames | with gradients | with gradients | package causal_conv1d |
| attention (attention/) | PyTorch's fused attention | inference | with gradients, by name only | |
| deformable attention (deformable/) | ``grid_sample`` | inference | with gradients | |
| depthwise convolution (depthwise/) | padding, ``conv2d``, clamp | inference, float32 | | |
| linear layer, 1 x 1 convolution, clamp (linear/) | ``linear``, ``clamp`` | inference, float32, AVX2 | | |
| inverted residual block (inverted_residual/) | its three convolutions | inference, float32, AVX2 | | |
| 3 x 3 convolution (winograd/) | ``conv2d`` | with gradients, float32 | | |
| separable block (separable/) | its convolutions and norms | inference, float32, AVX2 | | |
| group norm, sum, ReLU (group_norm/) | ``group_norm``, ``relu`` | inference, float32, channels last | | |

``choice.py`` selects the kernel of every operation, and compares it with the reference at its first use
(``first_use.py``). On a CPU ``auto`` selects C++. On CUDA it selects mamba_ssm's kernels if that
package is installed and supports the call, else Triton's: mamba_ssm's have run on GPUs, ours have only been compiled
for one and run in Triton's interpreter. The order may change once both are measured. For attention it selects PyTorch's
own. If a kernel is chosen by name and does not support a call (no entry above, or float64), that call runs as under
``auto``.
"""
