"""Running out of memory, told apart from other errors, with what was being done at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SAID = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
    "not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no room; torch says so in several classes and wordings."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Notes ``what`` on an out-of-memory error that passes through; the innermost comes first.

    Args:
        what: begins with a verb: ``loading the teacher``, ``generating responses``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            error.add_note(what)
        raise
