"""Pages as one file each: no network, no script, every text escaped.

Everything shown comes from a run directory, whose texts attackers have written. Jinja escapes all of it; control
characters and marks of direction are spelled out besides; and the page's content security policy forbids every script,
every request, and every style but the page's own, by its hash. So a text that got through would still be inert.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..messages import visible
from . import charts, words
from .reading import Run
from .summary import summarise

CLIP = 700
"""Characters of a text that the report shows of an example; the viewer shows all."""


def report(run: Run) -> str:
    """The report of a run as a page."""
    return render("report.html", s=summarise(run))


def render(template: str, **data: Any) -> str:
    """A page from a template of this package and plain data."""
    return _environment().get_template(template).render(**data)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fate_trl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    style = environment.get_template("style.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals |= {
        "style": Markup(style),
        "policy": "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{digest}'",
        "words": words,
        "charts": charts,
    }
    environment.filters |= {
        "percent": words.percent,
        "clip": clip,
        "compact": lambda value: clip(json.dumps(value, ensure_ascii=False, default=str)),
        "duration": duration,
        "count": lambda value: "–" if value is None else f"{value:,.0f}",
    }
    return environment


def _plain(value: Any) -> Any:
    """Text that goes onto the page without what steers or hides; markup is the template's own."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value.replace("\t", "    "))


def clip(text: str) -> str:
    """The beginning of a long text, and how much was left out."""
    return text if len(text) <= CLIP else f"{text[:CLIP]} … ({len(text) - CLIP} more characters)"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
