"""TRL's generation batches as tensors: gathered over processes, and groups of one copied over those of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# How each tensor of TRL's generation batch is padded: side, and filler (None stands for the pad token).
PADDING: dict[str, tuple[str, float | None]] = {
    "prompt_ids": ("left", None),
    "prompt_mask": ("left", 0),
    "completion_ids": ("right", None),
    "completion_mask": ("right", 0),
    "tool_mask": ("right", 1),
    "advantages": ("right", 0),
    "old_per_token_logps": ("right", 0),
    "ref_per_token_logps": ("right", 0),
    "sampling_per_token_logps": ("right", 0),
    "importance_sampling_ratio": ("right", 1),
}


def _widened(tensor: torch.Tensor, width: int, side: str, filler: float) -> torch.Tensor:
    missing = width - tensor.size(1)
    return torch.nn.functional.pad(tensor, (missing, 0) if side == "left" else (0, missing), value=filler)


def _padding(key: str, pad_id: int) -> tuple[str, float]:
    side, filler = PADDING[key]
    return side, pad_id if filler is None else filler


def gathered(batch: dict[str, Any], accelerator: Any, pad_id: int) -> dict[str, Any]:
    """A batch of rows as all processes have them, in order, padded to one width."""
    if accelerator.num_processes == 1:
        return batch
    out = {}
    for key, own in batch.items():
        if own.ndim > 1:
            side, filler = _padding(key, pad_id)
            own = accelerator.pad_across_processes(own, 1, filler, pad_first=side == "left")
        out[key] = accelerator.gather(own.contiguous()) if own.ndim else own
    return out


def merge(
    out: dict[str, Any],
    fresh: dict[str, Any],
    slots: np.ndarray,
    gifts: np.ndarray,
    *,
    group: int,
    pad_id: int,
    first: int = 0,
) -> None:
    """Copy the groups `gifts` of `fresh` over the groups `slots`, in place, as far as their rows are in `out`.

    Groups have `group` rows. Rows of `fresh`, and slots, count over all processes; those of `out` are from `first` on.
    A row keeps its number.
    """
    within = np.arange(group)
    to = (slots[:, None] * group + within).reshape(-1) - first
    source = (gifts[:, None] * group + within).reshape(-1)
    mine = (to >= 0) & (to < len(out["prompt_ids"]))
    to_R, source_R = torch.as_tensor(to[mine]), torch.as_tensor(source[mine])
    for key, kept in out.items():
        if kept.ndim == 0 or not len(to_R) or key == "row":
            continue
        new = fresh[key]
        if kept.ndim > 1:
            side, filler = _padding(key, pad_id)
            width = max(kept.size(1), new.size(1))
            kept, new = _widened(kept, width, side, filler), _widened(new, width, side, filler)
        kept = kept.clone()
        kept[to_R.to(kept.device)] = new[source_R.to(new.device)]
        out[key] = kept


def whole_groups(micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Micro-batches of the same sizes with their rows in the order of `row`, so that groups stay together."""
    order = torch.cat([batch["row"] for batch in micro_batches]).argsort()
    whole = {
        key: torch.cat([batch[key] for batch in micro_batches])[order.to(value.device)] if value.ndim else value
        for key, value in micro_batches[0].items()
    }
    sizes = [len(batch["row"]) for batch in micro_batches]
    split = {key: value.split(sizes) if value.ndim else [value] * len(sizes) for key, value in whole.items()}
    return [{key: parts[i] for key, parts in split.items()} for i in range(len(sizes))]


def widest(device: torch.device) -> torch.dtype:
    """float64, where the device has it: Apple's MPS does not."""
    return torch.float32 if device.type == "mps" else torch.float64


def count_items(out: dict[str, Any], accelerator: Any) -> None:
    """Set the number of tokens in the loss, over all processes, to what the masks now hold."""
    mask = out["completion_mask"] * out["tool_mask"] if "tool_mask" in out else out["completion_mask"]
    out["num_items_in_batch"] = accelerator.gather(mask.sum()).sum()


def leave_out(out: dict[str, Any], rows_B: torch.Tensor, accelerator: Any) -> None:
    """Take rows out of the loss, as TRL takes out truncated ones: by their masks. Every process calls this."""
    kept_B_1 = (~rows_B).unsqueeze(1).int()
    for key in out.keys() & {"completion_mask", "tool_mask"}:
        out[key] = out[key] * kept_B_1
    count_items(out, accelerator)
