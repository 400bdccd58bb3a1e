"""Merged weights: saved policies by coefficients that sum to 1, from files to files.

Adapters are merged on what they add to the model, B A, and never factor by factor: the average of two products is not
the product of two averages. Side by side, the factors of n adapters of rank r are the exact factors of rank n r; where
a lower rank is asked for, the best one of that rank is taken, by singular values, and what it loses is said.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import FateError
from ..recipe.lora import CONFIG, adapter_config
from .models import ADAPTER

_A, _B = ("lora_A.weight", "lora_embedding_A"), ("lora_B.weight", "lora_embedding_B")
"""Ends of the names of an adapter's factors, (r, in) and (out, r): of layers, and of embeddings."""

Tensors = dict[str, torch.Tensor]


def merge_weights(
    folders: Sequence[str | Path], coefficients: Sequence[float], path: str | Path, rank: int | None = None
) -> dict[str, float]:
    """Write the merged weights of saved policies, and what else the first of them has, to a folder.

    Args:
        folders: The policies', all of them adapters on one model, or all whole models.
        coefficients: One per policy, with the sum 1.
        path: The folder to write.
        rank: Of a merged adapter; None for the exact one, whose rank is the sum of the policies' ranks.

    Returns:
        `rank` of an adapter, and `lost`, the share of its Frobenius norm that a lower rank leaves out, the greatest of
        all layers; of whole models nothing.

    Raises:
        FateError: The policies do not fit together, or a file cannot be read.
    """
    if len(folders) != len(coefficients) or not math.isclose(sum(coefficients), 1, abs_tol=1e-6):
        raise FateError(f"{len(folders)} policies need as many coefficients with the sum 1, not {list(coefficients)}.")
    target, adapters = Path(path), [(Path(folder) / CONFIG).is_file() for folder in folders]
    if any(adapters) and not all(adapters):
        raise FateError(f"{folders[adapters.index(False)]} has no adapter, and others have; only like policies merge.")
    shutil.copytree(folders[0], target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", CONFIG))
    if all(adapters):
        return _merge_adapters([Path(folder) for folder in folders], coefficients, target, rank)
    for name in _weight_files(folders):
        save_file(_summed(_read(folders, name), coefficients), target / name, metadata={"format": "pt"})
    return {}


def _weight_files(folders: Sequence[str | Path]) -> list[str]:
    names = [sorted(file.name for file in Path(folder).glob("*.safetensors")) for folder in folders]
    odd = next((i for i, found in enumerate(names) if found != names[0] or not found), None)
    if odd is not None:
        raise FateError(f"{folders[odd]} has the weights {names[odd] or 'none'}, and {folders[0]} has {names[0]}.")
    return names[0]


def _read(folders: Sequence[str | Path], name: str) -> list[Tensors]:
    """A file of each folder. Raises FateError where one cannot be read, or has other tensors than the first one's."""
    try:
        found = [load_file(Path(folder) / name) for folder in folders]
    except (OSError, SafetensorError) as error:
        raise FateError(f"the weights to merge cannot be read: {error}") from None
    for folder, tensors in zip(folders, found, strict=True):
        spoilt = next((key for key, tensor in tensors.items() if not tensor.float().isfinite().all()), None)
        if spoilt is not None:
            raise FateError(f"{Path(folder) / name}: {spoilt} holds NaN or infinity, and so would what is merged.")
        other = sorted(set(tensors) ^ set(found[0]))
        other += [key for key in tensors if not other and _size(key, tensors[key]) != _size(key, found[0][key])]
        if other:
            raise FateError(f"{folder} is of another model or layers than {folders[0]}: {other[0]} differs.")
    return found


def _size(key: str, tensor: torch.Tensor) -> torch.Size:
    """The shape, but for an adapter's rank."""
    if key.endswith(_A):
        return tensor.shape[1:]
    return tensor.shape[:1] if key.endswith(_B) else tensor.shape


def _rank_of(key: str, tensor: torch.Tensor) -> int | None:
    """The rank of an adapter's factor; None of another tensor."""
    if key.endswith(_A):
        return tensor.shape[0]
    return tensor.shape[1] if key.endswith(_B) else None


def _summed(policies: Sequence[Tensors], coefficients: Sequence[float]) -> Tensors:
    """The weighted sum of each tensor, in float32, and in the first one's type again."""
    return {
        key: torch.stack([c * tensors[key].float() for c, tensors in zip(coefficients, policies, strict=True)])
        .sum(0)
        .to(first.dtype)
        .contiguous()
        for key, first in policies[0].items()
    }


def _merge_adapters(
    folders: Sequence[Path], coefficients: Sequence[float], target: Path, rank: int | None
) -> dict[str, float]:
    policies = _read(folders, ADAPTER)
    configs = [adapter_config(folder) for folder in folders]
    whole = sum(config["r"] for config in configs)
    size = whole if rank is None else rank
    for folder, tensors, config in zip(folders, policies, configs, strict=True):
        odd = next((key for key, tensor in tensors.items() if _rank_of(key, tensor) not in (None, config["r"])), None)
        if odd is not None:
            has = _rank_of(odd, tensors[odd])
            raise FateError(f"{folder / CONFIG} says r {config['r']}, and {odd} has the rank {has}; mend the config.")
    scale = [c * config["lora_alpha"] / config["r"] for c, config in zip(coefficients, configs, strict=True)]
    pairs = [(key, f"{key.removesuffix(a)}{b}") for key in policies[0] for a, b in zip(_A, _B) if key.endswith(a)]
    rest = {key for pair in pairs for key in pair}
    if not pairs or not rest <= policies[0].keys():
        raise FateError(f"{folders[0] / ADAPTER} has no pairs of {_A[0]} and {_B[0]}, so it is no LoRA adapter's.")
    out = _summed([{k: t for k, t in tensors.items() if k not in rest} for tensors in policies], coefficients)
    # The config's scale is kept, and with it what a training that goes on from here does at a learning rate.
    alpha = configs[0]["lora_alpha"] * size // configs[0]["r"] or size
    lost = 0.0
    for of_a, of_b in pairs:
        b = torch.cat([s * tensors[of_b].float() for s, tensors in zip(scale, policies, strict=True)], dim=1)
        a = torch.cat([tensors[of_a].float() for tensors in policies])
        if size != whole:
            b, a, share = _of_rank(b, a, size)
            lost = max(lost, share)
        kind = policies[0][of_a].dtype
        out[of_b] = (b / (alpha / size)).to(kind).contiguous()
        out[of_a] = a.to(kind).contiguous()
    save_file(out, target / ADAPTER, metadata={"format": "pt"})
    (target / CONFIG).write_text(json.dumps({**configs[0], "r": size, "lora_alpha": alpha}, indent=2), encoding="utf-8")
    return {"rank": size, "lost": lost}


def _of_rank(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best factors of a rank of the product b a, padded with zeros where that has a lower one, and what they lose.

    Shapes: b (out, R), a (R, in). The product itself is never made: R is small, and out and in are not.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    kept = s[:rank].sqrt()
    best_b, best_a = (q_b @ u[:, :rank]) * kept, (vh[:rank] @ q_a.T) * kept[:, None]
    missing = rank - len(kept)
    best_b = torch.nn.functional.pad(best_b, (0, missing))
    best_a = torch.nn.functional.pad(best_a, (0, 0, 0, missing))
    norm = float(s.norm())
    return best_b, best_a, float(s[rank:].norm()) / norm if norm else 0.0
