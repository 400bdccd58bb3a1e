#!/usr/bin/env bash
# langchain 1.5.2, langchain-core 1.8.3 and langchain-openai 1.7.4: a tool call that was cut off runs, with what had arrived by then, if the agent
# is watched.
#
# One would guess that a reply which ends in the middle of a call's arguments (finish_reason "length") gives no call, streamed or not: `invoke`
# puts it among `invalid_tool_calls`, and no tool runs. Streamed, the pieces are parsed after each of them by a parser that closes what is open, so
# the cut text `{"to": "bob", "amount": 12` is the sound call pay(to="bob", amount=12), and it stays one when the reply has ended. An agent
# streams its model whenever somebody looks on (`stream_mode="messages"`). So a limit on tokens pays 12 where the model was about to write 1200,
# and the same agent with the same replies acts in one mode and does not in the other.
#
# Seen: what the tool was called with, for one agent and one server on this machine: nothing by `invoke`, pay(bob, 12) by `stream`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q langchain==1.5.2 langchain-core==1.8.3 langchain-openai==1.7.4
cat > "$folder/show.py" <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

CUT = '{"to": "bob", "amount": 12'
CALL = {"id": "call_1", "type": "function", "function": {"name": "pay", "arguments": CUT}}


class Server(BaseHTTPRequestHandler):
    """A model that runs out of tokens within its first call, and says "Done." to a tool's result."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        paid = asked["messages"][-1]["role"] == "tool"
        said = {"role": "assistant", "content": "Done."} if paid else {"role": "assistant", "content": None, "tool_calls": [CALL]}
        finish = "stop" if paid else "length"
        head = {"id": "1", "created": 0, "model": "m"}
        if asked.get("stream"):
            delta = said if paid else {**said, "tool_calls": [{"index": 0, **CALL}]}
            pieces = [{"index": 0, "delta": delta, "finish_reason": None}, {"index": 0, "delta": {}, "finish_reason": finish}]
            lines = [json.dumps({**head, "object": "chat.completion.chunk", "choices": [piece]}) for piece in pieces]
            body, kind = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]), "text/event-stream"
        else:
            choice = {"index": 0, "message": said, "finish_reason": finish}
            body, kind = json.dumps({**head, "object": "chat.completion", "choices": [choice]}), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def pay(to: str, amount: int) -> str:
    """Pay somebody an amount of euros."""
    paid.append((to, amount))
    return "paid"


paid: list[tuple[str, int]] = []
server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
model = ChatOpenAI(model="m", base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
agent = create_agent(model, [pay])
request = {"messages": [("user", "Pay bob 1200 euros.")]}

agent.invoke(request)
print("invoke:", paid)
for _ in agent.stream(request, stream_mode="updates"):
    pass
print("stream, updates:", paid)
for _ in agent.stream(request, stream_mode="messages"):
    pass
print("stream, messages:", paid)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" > "$folder/seen"
cat > "$folder/said" <<'END'
invoke: []
stream, updates: []
stream, messages: [('bob', 12)]
END
cat "$folder/seen"
diff "$folder/said" "$folder/seen"
echo "as described"
