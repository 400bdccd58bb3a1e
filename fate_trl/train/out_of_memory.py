"""What memory that ran out looks like: torch has an error of its own for it on a GPU, and none on a CPU."""

from __future__ import annotations

import torch

ERRORS = (MemoryError, RuntimeError)
"""What such an error may be; torch.OutOfMemoryError is a RuntimeError."""

_ON_A_CPU = "can't allocate memory"
"""What torch's allocator says on a CPU."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or its cause, says that memory ran out."""
    if error is None:
        return False
    here = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return here or (isinstance(error, RuntimeError) and _ON_A_CPU in str(error)) or is_out_of_memory(error.__cause__)
