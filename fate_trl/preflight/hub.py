"""Whether a recipe's model can be had from the hub, known before anything is loaded or written."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

from ..errors import RecipeError
from ..recipe.schema import Recipe, hub_id


def reach_hub(recipe: Recipe) -> bool:
    """Whether the hub is needed and can be reached.

    Raises:
        RecipeError: It is needed and cannot be reached; at once, and not after a client's retries.
    """
    name = hub_id(recipe.model)
    if name is None:
        return False
    from huggingface_hub import constants, try_to_load_from_cache

    host = urlsplit(constants.ENDPOINT)
    online = not constants.HF_HUB_OFFLINE and (
        host.scheme in urllib.request.getproxies() or _answers(str(host.hostname), host.port or 443)
    )
    cached = try_to_load_from_cache(name, "config.json", revision=recipe.model.revision)
    if not online and not isinstance(cached, str):
        raise RecipeError(
            f"model.path: {name} is not in the hub's cache here, and {host.hostname} cannot be reached. Give "
            "a folder that holds its configuration, tokenizer and weights, or run this where the hub can be reached."
        )
    return online


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
