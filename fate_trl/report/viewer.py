"""The trajectory viewer: a static site whose data files are made from a run directory, served or exported.

    index.html, *.js, *.css       the files of `static/`, as they are
    data/index.js                 the index (index.py)
    data/shard-00012.js           SHARD trajectories; the browser loads the shard of what somebody opens

The server makes data files on demand, the export writes them all: one site, so both behave alike, and the exported
folder opens from any static server or by double click. The latter is why data come as scripts: on file:// a page may
load scripts, but neither fetch files nor load modules. Every data file hands over one text, and the page parses it as
JSON; what attackers wrote into a record is in that text, never code. A page from elsewhere cannot load it: answers say
`Cross-Origin-Resource-Policy: same-origin`, and requests that a browser marks as another site's are refused.
"""

from __future__ import annotations

import http.server
import json
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import FateError
from . import index
from .reading import Run
from .several import merged

SHARD = 32
"""Trajectories per data file: about 100 kB, and reading on with `j` seldom needs another one."""

STATIC = Path(__file__).parent / "static"

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "fate-data",
}
CONTENT_SECURITY_POLICY = "; ".join(f"{name} {value}" for name, value in _POLICY.items())
"""Stands in index.html too, for the exported folder. No connection, no inline script, no markup made of text."""

_HEADERS = {
    "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Site:
    """The files of the viewer of a run, or of several, by name.

    Args:
        paths: The run directory, or several. An index is built here (seconds for 50,000 trajectories), or read from its
            cache.
        keep: Whether to cache an index that was built, in the run directory.
    """

    def __init__(self, *paths: str | Path, keep: bool = True):
        self.runs = [Run.open(path) for path in paths]
        indexes = [index.load(run, keep) for run in self.runs]
        for path, found in zip(paths, indexes, strict=True):
            if not found.places:
                raise FateError(f"{path} has no trajectories yet; a run writes them in chunks, look again in a while.")
        self._index, self._of = indexes[0], [0] * len(indexes[0].places)
        if len(paths) > 1:
            self._index, self._of = merged(dict(zip(_names(self.runs), indexes, strict=True)))
        self._static = {file.name: file for file in STATIC.iterdir() if file.suffix in _TYPES}
        count = -(-len(self._index.places) // SHARD)
        self._shards = {f"data/shard-{number:05d}.js": number for number in range(count)}

    @property
    def names(self) -> list[str]:
        return [*self._static, "data/index.js", *self._shards]

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self._index.places)

    def read(self, name: str) -> bytes | None:
        """A file of the site, None if there is none of that name. ValueError if the run's records have changed."""
        if name in self._static:
            return self._static[name].read_bytes()
        if name == "data/index.js":
            return _data("index", {**self._index.shown, "shard": SHARD})
        if name in self._shards:
            number = self._shards[name]
            rows = range(number * SHARD, min((number + 1) * SHARD, len(self)))
            return _data(number, [_opened(index.read(self._path(row), self._index.places[row])) for row in rows])
        return None

    def _path(self, row: int) -> Path:
        """The directory of a row's run."""
        return self.runs[self._of[row]].path


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names, each its own: of two that are alike, the paths."""
    names = [run.name for run in runs]
    return [str(run.path) if names.count(run.name) > 1 else run.name for run in runs]


def _data(name: str | int, value: Any) -> bytes:
    """A script that hands over JSON as one text: a record may have a key `__proto__`, which means something in code."""
    text = json.dumps(value, separators=(",", ":"))
    return f"fate.data.receive({json.dumps(name)},{json.dumps(text)});\n".encode("ascii")


def _opened(record: dict[str, Any]) -> dict[str, Any]:
    """What the viewer shows of a record: all but the tokens, which it counts."""
    trajectory = dict(record["trajectory"])
    sampled = sum(trajectory.pop("policy_mask", ()))
    trajectory.pop("completion_ids", None)
    tokens = {"prompt": len(trajectory.pop("prompt_ids", ())), "sampled": sampled}
    return {"trajectory": trajectory, "scores": record["card"]["scores"], "tokens": tokens}


def export(site: Site, folder: Path) -> None:
    """Write the site into a new or empty folder. FateError if the folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FateError(f"{folder} is not empty; --export writes into a new or an empty folder.")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in site.names:
        (folder / name).write_bytes(site.read(name) or b"")


# ------------------------------------------------------------------------------------------------ serving


class SiteServer(http.server.ThreadingHTTPServer):
    """Serves a site on the loopback device only.

    Args:
        site: The site.
        port: The port; 0 takes a free one, found in `url` afterwards.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int = 0):
        self.site = site
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = str(getattr(error, "strerror", None) or error).rstrip(".")
            raise FateError(
                f"cannot listen on port {port}: {reason}. Give another --port, or 0 for a free one."
            ) from None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """Names under which a browser may ask; any other one is somebody's domain that was made to point here."""
        return {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET for the names of a site; there is no way from a name to a path."""

    server: SiteServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fate-trl", ""
    timeout = 60

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts or self._from_elsewhere():
            return self._answer(HTTPStatus.FORBIDDEN)
        try:
            name = urlsplit(self.path).path.removeprefix("/") or "index.html"
            body = self.server.site.read(name)
        except (OSError, ValueError, KeyError):
            return self._answer(HTTPStatus.GONE)  # the run was resumed or removed since the index was built
        if body is None:
            return self._answer(HTTPStatus.NOT_FOUND)
        return self._answer(HTTPStatus.OK, body, _TYPES[Path(name).suffix])

    def _from_elsewhere(self) -> bool:
        """Whether another site's page embeds this one's files; following a link to here is fine."""
        site, mode = self.headers.get("Sec-Fetch-Site", "none"), self.headers.get("Sec-Fetch-Mode")
        return site not in ("same-origin", "none") and mode != "navigate"

    def _refuse(self) -> None:
        self.close_connection = True  # a body may follow, which nobody reads
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, status: HTTPStatus, body: bytes = b"", type: str = "text/plain; charset=utf-8") -> None:
        if status is not HTTPStatus.OK:
            body = f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command."""
