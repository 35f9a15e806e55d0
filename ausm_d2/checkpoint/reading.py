# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads untrusted checkpoint files: tensors, arrays and plain values only; no code is executed."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ausm_d2.errors import UserError

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of files saved by torch before 1.6


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an untrusted checkpoint of tensors, arrays and plain values.

    Args:
        path: a file of ``torch.save``, or a pickle.

    Returns:
        ``"model"``: tensors by name; and the file's other entries (iteration, optimiser, ...).

    Raises:
        UserError: if the file is missing or damaged, holds objects of other types, or has no weights.
    """
    if not os.path.isfile(path):
        raise UserError(f"weights file '{path}' does not exist")
    try:
        data = _read(Path(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if not named:
            raise UserError(f"{path}: not a checkpoint, or damaged") from error
        raise UserError(
            f"{path}: refused, it holds '{named[1]}'; a checkpoint may hold tensors, arrays and plain values only"
        ) from error
    except Exception as error:  # torch, zipfile and pickle raise various exceptions
        raise UserError(f"{path}: not a checkpoint, or damaged ({type(error).__name__})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, expected a dictionary of tensors by name")
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), dict):
            weights = data.pop(key)
            break
    else:
        weights, data = data, {}
    return {**data, "model": {name: _tensor(path, name, value) for name, value in weights.items()}}


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file of ``torch.save`` is complete and as it was written, by the checksums of its parts."""
    try:
        with open(path, "rb") as file:
            _check_archive(file)
    except Exception:  # as below
        return False
    return True


def require_whole(path: str | os.PathLike[str]) -> None:
    """As :func:`is_whole`, with a ``UserError`` that says what is wrong."""
    try:
        with open(path, "rb") as file:
            _check_archive(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:
        raise UserError(f"{path}: not a file of torch.save, or damaged ({type(error).__name__})") from None


def _check_archive(file: IO[bytes]) -> None:
    """torch.load looks at no checksum, and would unpack what takes far more memory than the file.

    Raises:
        UserError: parts of a zip file are damaged, or packed, which torch.save does not do.
        Exception: it is no zip file, or damaged.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        size = file.seek(0, os.SEEK_END)
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
            raise UserError("refused, its contents are packed")
        damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"damaged: the checksum of '{damaged}' does not fit")


def weights_to_use(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint; averaged weights (MODEL_EMA) replace the others, if there are any."""
    average = checkpoint.get("ema")
    if not isinstance(average, Mapping):
        return dict(checkpoint["model"])
    return {name: average.get(name, value) for name, value in checkpoint["model"].items()}


def _tensor(path: str | os.PathLike[str], name: Any, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.array(value))  # a copy: unpickled arrays may be read-only
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        raise UserError(f"{path}: '{name}' is a {type(value).__name__}, expected a dense tensor or an array of numbers")
    return value.detach()


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        beginning = file.read(len(_LEGACY_TORCH))
        file.seek(0)
        packed = zipfile.is_zipfile(file)
        if packed:
            _check_archive(file)
        if packed or beginning == _LEGACY_TORCH:
            file.seek(0)
            with torch.serialization.safe_globals(_numpy_globals()):
                return torch.load(file, map_location="cpu", weights_only=True)
        file.seek(0)
        _check_pickle(file)
        file.seek(0)
        return _SafeUnpickler(file, encoding="latin1").load()


def _check_pickle(file: IO[bytes]) -> None:
    """What Python's unpickler takes memory for before it has seen it: a place in its memo, by number.

    Raises:
        pickle.UnpicklingError: such a number is larger than the file.
        Exception: it is no pickle, or cut off.
    """
    size = os.fstat(file.fileno()).st_size
    for opcode, argument, _ in pickletools.genops(file):
        if "PUT" in opcode.name and int(argument or 0) > size:
            raise pickle.UnpicklingError("a place in the memo beyond the file")


def _numpy_globals() -> list[Any]:
    """The globals that ``torch.load`` must allow for NumPy arrays and scalars."""
    array, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    names = [(array, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    dtypes = [type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["AllFloat"], "?")]
    return [np.ndarray, np.dtype, array, scalar, *names, *dtypes]


def _safe_callables() -> dict[str, Any]:
    """The globals that a pickle may use. Python functions are wrapped, so that a pickle cannot modify them."""
    array: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    buffer: Any = np.empty(1).__reduce_ex__(5)[0]
    plain: dict[str, Any] = {"collections.OrderedDict": OrderedDict}
    for module in ("builtins", "__builtin__"):
        plain |= {f"{module}.{kind.__name__}": kind for kind in (set, frozenset, complex)}
        plain[f"{module}.bytearray"] = _as_bytearray
    for module in ("numpy.core", "numpy._core"):
        plain[f"{module}.multiarray._reconstruct"] = lambda *_: array(np.ndarray, (0,), b"b")
        plain[f"{module}.multiarray.scalar"] = scalar
        plain[f"{module}.numeric._frombuffer"] = lambda *args: buffer(*args)
    return plain | {
        "numpy.ndarray": _ArrayType,
        "numpy.dtype": np.dtype,
        "_codecs.encode": lambda text, _: text.encode("latin1"),  # pickled bytes of protocol 2
        "torch.storage._load_from_bytes": lambda data: torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        ),
        "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: torch._utils._rebuild_tensor(
            storage, offset, size, stride
        ),
        "torch._utils._rebuild_parameter": lambda data, *_: data,
    }


class _ArrayType:
    """Stands for ``numpy.ndarray``, which pickles of arrays name; to call it would make one of any size."""


def _as_bytearray(*contents: Any) -> bytearray:
    if contents and isinstance(contents[0], int):
        raise pickle.UnpicklingError("a bytearray of a size, without contents")
    return bytearray(*contents)


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, **kwargs: Any) -> None:
        super().__init__(file, **kwargs)
        self._callables = _safe_callables()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._callables[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None
