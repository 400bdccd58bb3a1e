#!/usr/bin/env bash
# agentdojo 0.1.35: a tool runs with arguments that it does not have, and with texts in the place of numbers.
#
# One would guess that `FunctionsRuntime.run_function` raises ValidationError for arguments that "are invalid and do not match the
# function's input schema", as it says. It drops those that the schema does not know, and reads "3" as 3. So the share of valid calls
# that a benchmark run shows is higher than that of a strict executor, such as TRL's or Inspect's.
#
# Seen: a call with a misspelt optional argument, and one with a text for an int, both run without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q agentdojo==0.1.35
cat > "$folder/show.py" <<'PY'
from agentdojo.functions_runtime import FunctionsRuntime


def pay(amount: int, note: str = "none") -> str:
    """Pay an amount.

    :param amount: Euros.
    :param note: What it is for.
    """
    return f"{amount!r} euros, note {note}"


runtime = FunctionsRuntime([])
runtime.register_function(pay)
print(runtime.run_function(None, "pay", {"amount": 3, "notes": "rent"}))
print(runtime.run_function(None, "pay", {"amount": "3"}))
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" | tee "$folder/seen"
grep -qxF "('3 euros, note none', None)" "$folder/seen"
[ "$(grep -cxF "('3 euros, note none', None)" "$folder/seen")" = 2 ]
echo "as described"
