# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A GPU that is none: tensors that say they are on CUDA, and compute on the CPU.

With it a machine without one sees what a GPU would refuse, operations on tensors of both devices, and what the program
would wait for. It sees no speed, and none of CUDA's own kernels: Triton's are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ausm_d2
from ausm_d2.kernels import cached_tensors
from ausm_d2.kernels.choice import use_kernels

CUDA = torch.device("cuda", 0)
_READ = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")
_PACKAGE = str(Path(ausm_d2.__file__).parent)
_INDEX = ("aten.index.Tensor", "aten.index_put_.default")


class _OnGpu(Tensor):
    """Holds the tensor of the CPU that it stands for."""

    cpu_tensor: Tensor

    @staticmethod
    def __new__(cls, tensor: Tensor) -> _OnGpu:
        like = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        made = Tensor._make_subclass(cls, like, False, dispatch_device=True, device_for_backend_keys=CUDA)
        made.cpu_tensor = tensor
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, new: Tensor) -> None:
        Tensor.data.__set__(self, new)
        self.cpu_tensor = new.cpu_tensor

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside pretended_gpu()")


class PretendedGpu(TorchDispatchMode):
    """Runs every operation where its tensors say they are.

    Attributes:
        waits: what the program would have waited for, and where.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def wait(self, what: str) -> None:
        frame: FrameType | None = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        place = "" if frame is None else f" at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        self.waits.append(what + place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), dict(kwargs or {})
        if name == "prim.device.default":
            return CUDA if isinstance(args[0], _OnGpu) else args[0].device
        tensors = list(_tensors((*args, *kwargs.values())))
        there = [each for each in tensors if isinstance(each, _OnGpu)]
        here = [each for each in tensors if not isinstance(each, _OnGpu)]
        to_gpu = bool(there)
        if kwargs.get("device") is not None:
            to_gpu = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        if name in ("aten._to_copy.default", "aten.copy_.default"):
            crossing = bool(there) != to_gpu or (there and here)
            if crossing and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self.wait("a copy")
        elif there and any(each.ndim for each in here):
            shapes = [(type(each).__name__, tuple(each.shape)) for each in tensors]
            raise RuntimeError(f"{name}: tensors on both devices: {shapes}")
        elif there and (name.startswith(_READ) or (name in _INDEX and _by_masks(args[1]))):
            self.wait(name)
        if there:
            args = [_mapped(_there, each) for each in args]
            kwargs = {name: _mapped(_there, each) for name, each in kwargs.items()}
        out = func(*args, **kwargs)
        if not to_gpu:
            return out
        same = {id(each.cpu_tensor): each for each in there}  # what works in place returns what it was given
        return _mapped(lambda x: same[id(x)] if id(x) in same else _OnGpu(x), out)


def _there(x: Tensor) -> Tensor:
    return x.cpu_tensor if isinstance(x, _OnGpu) else x


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those of an operation's arguments, which are values and lists of them; PyTorch's pytree takes twice as long."""
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)


def _mapped(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """An argument or a result of an operation with its tensors changed."""
    if isinstance(x, Tensor):
        return change(x)
    return type(x)([_mapped(change, each) for each in x]) if isinstance(x, list | tuple) else x


def _by_masks(indices: Any) -> bool:
    return any(each.dtype in (torch.bool, torch.uint8) for each in indices if isinstance(each, Tensor))


def skip_unless_it_can_be_pretended() -> None:
    """Skip a test if there is a GPU, or if PyTorch needs a driver to name one."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip("this PyTorch cannot pretend that there is a GPU")


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """Simulates CUDA inside the context; the device is "cuda:0"."""
    skip_unless_it_can_be_pretended()
    gpu = PretendedGpu()
    from_data = torch.tensor

    class Event:
        def record(self, *stream: Any) -> None: ...

        def synchronize(self) -> None:
            gpu.wait("an event")

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = from_data(data, *args, **kwargs)
        return made if device is None else made.to(device)

    with monkeypatch.context() as patch:
        torch._C._ensureCUDADeviceGuardSet()
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda *device: None)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(Tensor, "pin_memory", lambda self, *args: self)
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with gpu, use_kernels("reference"):
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
            torch.clear_autocast_cache()
            cached_tensors.clear()  # cached positions must not stay on the pretended device
