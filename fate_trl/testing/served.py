"""A scripted OpenAI-compatible server on loopback, which behaves, misbehaves or falls silent: for tests of clients.

with ScriptedServer(lambda number, body: completion("Done.")) as server:
    ... ask server.url, then look at server.asked
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(
    content: str = "",
    calls: Sequence[tuple[str, str]] = (),
    finish: str = "stop",
    usage: tuple[int, int] = (10, 5),
) -> dict[str, Any]:
    """A well-formed reply.

    Args:
        content: What the model says.
        calls: (name, arguments as text) pairs.
        finish: Why it ended.
        usage: (prompt, completion) tokens.
    """
    made = [
        {"id": f"x{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content or None, **({"tool_calls": made} if made else {})}
    counted = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": counted}


class ScriptedServer(ThreadingHTTPServer):
    """Answers each request with what `script(number of the request, its body)` returns.

    That is a dict, bytes, or (status, headers, dict or bytes); None in place of the last hangs until the server closes.

    Attributes:
        script: May be changed at any time.
        url: What stands before /chat/completions.
        asked: (path, headers, body) of each request so far.
        most: Most requests that were open at a time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Callable[[int, Any], Any], port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.script = script
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.open = self.most = 0
        self.lock, self.over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 10  # an idle connection is given up, and its thread ends

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, dict(self.headers), body))
            number = len(server.asked) - 1
            server.open += 1
            server.most = max(server.most, server.open)
        try:
            said = server.script(number, body)
            status, headers, content = said if isinstance(said, tuple) else (200, {}, said)
            if content is None:
                server.over.wait(20)
        finally:  # before the reply leaves: who has it may ask again at once
            with server.lock:
                server.open -= 1
        if content is None:
            self.close_connection = True
        else:
            self._answer(status, headers, content)

    def _answer(self, status: int, headers: dict[str, str], content: Any) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        length = {"Content-Length": str(len(raw)), **headers}
        self.close_connection = length["Content-Length"] != str(len(raw))  # it hangs up in the middle
        self.send_response(status)
        for name, value in length.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass
