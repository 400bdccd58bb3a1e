#!/usr/bin/env bash
# agentdojo 0.1.35: a tool's result depends on PYTHONHASHSEED.
#
# One would guess that a benchmark's tool with fixed arguments returns the same text in every process. The workspace suite's
# create_calendar_event makes the participants unique by list(set(...)), so their order follows the hash seed of the process.
# A recorded trajectory does not replay to the same text in another process.
#
# Seen: the same call in ten processes with seeds 0 to 9 returns several orders of the three guests and the owner.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q agentdojo==0.1.35
cat > "$folder/show.py" <<'PY'
from agentdojo.functions_runtime import FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite

suite = get_suite("v1.2.2", "workspace")
environment = suite.load_and_inject_default_environment({})
runtime = FunctionsRuntime(suite.tools)
event = {
    "title": "Lunch",
    "start_time": "2024-05-20 12:00",
    "end_time": "2024-05-20 13:00",
    "participants": ["ann@example.com", "bob@example.com", "cleo@example.com"],
}
result, error = runtime.run_function(environment, "create_calendar_event", event)
assert error is None, error
print(" ".join(person.split("@")[0] for person in result.participants))
PY
for seed in 0 1 2 3 4 5 6 7 8 9; do
  PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/show.py"
done | sort | uniq -c | tee "$folder/seen"
[ "$(wc -l < "$folder/seen")" -gt 1 ] || { echo "one order only: no longer as described"; exit 1; }
echo "as described: the order depends on the hash seed"
