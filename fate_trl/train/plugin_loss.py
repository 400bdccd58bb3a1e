"""What a loss of a plugin returned, looked at before a weight moves."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import PluginError


def scalar(loss: Any, of: Any, kind: str) -> torch.Tensor:
    """The loss. Raises PluginError unless it is a finite scalar tensor, with a gradient where one is taken.

    Args:
        loss: What the component returned.
        of: The component.
        kind: What it is called, such as "policy loss".
    """
    who = f"the {kind} {type(of).__name__} returned"
    graph = isinstance(loss, torch.Tensor) and (loss.requires_grad or not torch.is_grad_enabled())
    if not isinstance(loss, torch.Tensor) or loss.ndim or not graph:
        raise PluginError(f"{who} {str(loss)[:80]}; it returns a scalar tensor with a gradient.")
    if not torch.isfinite(loss):
        raise PluginError(
            f"{who} {loss.item()}, from which no weight learns; the weights are as they were before this step. Look "
            "for a division by a sum of masks that is 0, a logarithm of 0, or an exponential that overflows."
        )
    return loss
