# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tensors that depend on sizes alone, such as positions: made once and kept, for making them on CUDA means waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_caches: list[Any] = []
_holders: list[list[Any]] = []


def kept(maxsize: int) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator: the last ``maxsize`` results of a function are kept, by its arguments. Nobody may write to them."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        cached = lru_cache(maxsize)(function)
        _caches.append(cached)

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            result = cached(*args, **kwargs)  # type: ignore[arg-type]  # all of them hashable
            for holder in _holders:
                holder.append(result)
            return result

        return call

    return decorate


@contextmanager
def holding() -> Iterator[list[Any]]:
    """What is asked for meanwhile, in a list: whoever has it can rely on the addresses, though others be kept later."""
    holder: list[Any] = []
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders.remove(holder)


def forget() -> None:
    """Keep nothing of what was kept."""
    for cached in _caches:
        cached.cache_clear()
