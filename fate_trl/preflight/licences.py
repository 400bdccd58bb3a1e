"""What the suites' data and the model may be used for, as they say themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..hookspecs import Suite
from ..recipe.schema import EMBEDDED, SMOLLM2, Recipe, hub_id
from .subject import Finding


def suite_licences(suites: Mapping[str, Suite]) -> Iterator[Finding]:
    for name, suite in suites.items():
        licence = suite.describe().get("licence")
        only = suite.describe().get("evaluation_only")
        said = licence or "the suite states no licence of its data"
        yield Finding(f"licence: {name}", "ok" if licence else "warning", said + (f"; {only}" if only else ""))


def model_licence(recipe: Recipe) -> Finding:
    card = _card_licence(recipe)
    if card is not None:
        return Finding("licence: model", "ok", card)
    return Finding("licence: model", "warning", "no model card is here that states one", "Read it where you got it.")


def _card_licence(recipe: Recipe) -> str | None:
    """The licence in the front matter of the model's card, where that is local."""
    from ..train.models import model_folder

    if recipe.model.path in EMBEDDED:
        return "Apache-2.0, made for fate-trl"
    if recipe.model.path == SMOLLM2:
        return "Apache-2.0"
    name = hub_id(recipe.model)
    file: Any = Path(model_folder(recipe.model)) / "README.md"
    if name is not None:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(name, "README.md", revision=recipe.model.revision)
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        licence: str | None = ModelCard.load(file).data.get("license")
        return licence
    except (ValueError, OSError):
        return None
