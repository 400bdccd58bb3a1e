"""A judge without a model, behind a real server: what it says depends on the record alone.

python scripted_judge.py [--seconds 0.2] COMMAND ...    runs COMMAND with --fate-args that name this judge
python scripted_judge.py --port 8000                    serves until it is stopped
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from typing import Any

from fate_trl.record import stable_hash
from fate_trl.testing.served import ScriptedServer, completion

KEY = re.compile(r"The key of this request is (\w+)\. Judge (.*), and give the JSON object\.$")


def asked(body: Any) -> tuple[str, list[str], str]:
    """(key, objectives, record) of a request."""
    text = body["messages"][-1]["content"]
    found = KEY.search(text)
    assert found, text[-200:]
    return found[1], found[2].split(", "), text[: found.start()]


def verdicts(body: Any, verdict: Any = "yes", key: str | None = None, **changes: Any) -> str:
    """An answer with the same finding for each objective; with the request's key unless another one is given."""
    right, objectives, _ = asked(body)
    finding = {"reason": "So it is.", "verdict": verdict, "step": None, "feedback": "", **changes}
    return json.dumps({"key": right if key is None else key, "verdicts": dict.fromkeys(objectives, finding)})


def by_content(number: int, body: Any) -> dict[str, Any]:
    """Yes or no, as the record's hash has it; to the other components of the plugin, an answer in their form."""
    question = body["messages"][-1]["content"]
    if "Form: " in question:  # LISTEN: the last candidate, or weights as in the form
        return completion('{"choice": 1}' if "choice" in question else question.partition("Form: ")[2])
    if question.startswith(("call: ", "answer: ")):  # a request that names all that was handed over
        return completion("Please " + " ".join(re.findall(r"[A-Za-z0-9@.]+", question.replace("call", ""))))
    verdict = "yes" if stable_hash(asked(body)[2]) % 2 else "no"
    return completion(verdicts(body, verdict, step=0, feedback="Do otherwise."))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it thinks")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()

    def script(number: int, body: Any) -> dict[str, Any]:
        time.sleep(options.seconds)
        return by_content(number, body)

    with ScriptedServer(script, options.port) as server:
        if not options.command:
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            sys.stdin.read()
            return 0
        served = {"url": server.url, "model": "scripted"}
        names = ("judge", "dual-reconstruction", "listen-tournament", "listen-utility")
        given = json.dumps(dict.fromkeys(names, served))
        return subprocess.call([*options.command, "--fate-args", given])


if __name__ == "__main__":
    sys.exit(main())
