# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The operations that have kernels: each has a reference in PyTorch, which says what it computes and is always there,
and faster forms. Pure tensors in, tensors out; nothing here imports the layers that use it.

| Operation | reference | cpu (C++) | triton | mamba_ssm |
| --- | --- | --- | --- | --- |
| selective scan (scan/) | loop over frames | with gradients | with gradients | without a state; single steps |
| causal convolution (conv/) | sum of shifted frames | with gradients | with gradients | package causal_conv1d |
| attention (attention/) | PyTorch's fused attention | inference | | |
| deformable attention (deformable/) | ``grid_sample`` | inference | with gradients | |

``choice.py`` chooses. ``auto`` takes C++ on a CPU. On CUDA it takes mamba_ssm's kernels where that package is installed
and they fit, else Triton's: mamba_ssm's have run on GPUs, ours have only been compiled for one and run in Triton's
interpreter. The order may change once both are measured. A call that a kernel chosen by name cannot do
(an operation or a case without an entry above, float64) is done as by ``auto``.
"""
