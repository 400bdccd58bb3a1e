#!/usr/bin/env bash
# agentdojo 0.1.35 with click 8.5.1: its benchmark script takes `--model LOCAL` and not `local`, and with several workers it hands its
# arguments on in the wrong places.
#
# One would guess that `--model local` works, as the enum's value and the documentation spell it, and that `--max-workers 2` only makes
# several suites run side by side. click takes the names of an enum's members. With several workers the arguments go through `starmap` in
# another order than the function's, and without `benchmark_version`: the user tasks arrive as `force_rerun`, the injection tasks as the
# version.
#
# Seen: local is refused; with two workers, v1.2 and --force-rerun asked for, both arrive as the empty tuples of user and injection tasks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q agentdojo==0.1.35 click==8.5.1
cat > "$folder/show.py" <<'PY'
import inspect
from multiprocessing.pool import ThreadPool

from click.testing import CliRunner

from agentdojo.scripts import benchmark

signature = inspect.signature(benchmark.benchmark_suite)
seen = []


def recorded(*args, **kwargs):
    seen.append(signature.bind(*args, **kwargs).arguments)
    raise RuntimeError("nothing is asked of a model")


benchmark.benchmark_suite, benchmark.Pool = recorded, ThreadPool
call = ["-s", "banking", "-s", "slack", "--benchmark-version", "v1.2", "--force-rerun", "--max-workers", "2"]
refused = CliRunner().invoke(benchmark.main, ["--model", "local", *call])
print("local is refused:", refused.exit_code == 2)
CliRunner().invoke(benchmark.main, ["--model", "LOCAL", *call])
print("the version is", seen[0]["benchmark_version"], "and force_rerun is", seen[0]["force_rerun"])
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" | tee "$folder/seen"
grep -qx "local is refused: True" "$folder/seen"
grep -qx "the version is () and force_rerun is ()" "$folder/seen"
echo "as described"
