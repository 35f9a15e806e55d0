# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Cache for tensors that depend only on sizes, such as sine positions: building them on CUDA costs a device sync."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_caches: list[Any] = []
_holders: list[list[Any]] = []


def cache_tensors(maxsize: int) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator: caches the last ``maxsize`` results by their arguments. Callers share them and must not write to
    them."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        cached = lru_cache(maxsize)(function)
        _caches.append(cached)

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            result = cached(*args, **kwargs)  # type: ignore[arg-type]  # all arguments are hashable
            for holder in _holders:
                holder.append(result)
            return result

        return call

    return decorate


@contextmanager
def hold_cached_tensors() -> Iterator[list[Any]]:
    """Collects every cached tensor requested inside the context, so that its memory stays valid after eviction."""
    holder: list[Any] = []
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders.remove(holder)


def clear() -> None:
    """Empty all caches."""
    for cached in _caches:
        cached.cache_clear()
