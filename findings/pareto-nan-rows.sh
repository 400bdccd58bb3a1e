#!/usr/bin/env bash
# moocore 0.3.2, paretoset 1.2.5 and pymoo 0.6.1.6: a point with NaN pushes finite points off the Pareto front, or stays on it.
#
# One would guess that a missing objective value removes its own point. In all three the point with NaN stays, and takes every
# finite point off the front.
#
# Seen, minimising, points (1, 1), (2, 2), (NaN, 0): the lines below. Besides, paretoset gives three equal points the ranks 1, 2, 3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q moocore==0.3.2 paretoset==1.2.5 pymoo==0.6.1.6 'numpy<2.4'
cat > "$folder/show.py" <<'PY'
import moocore
import numpy as np
from paretoset import paretorank, paretoset
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

points = np.array([[1.0, 1.0], [2.0, 2.0], [np.nan, 0.0]])
names = np.array(["(1,1)", "(2,2)", "(nan,0)"])
print("paretoset", *names[paretoset(points, sense=["min", "min"])])
print("moocore  ", *names[moocore.is_nondominated(points)])
print("pymoo    ", *names[sorted(NonDominatedSorting().do(points, only_non_dominated_front=True))])
print("ranks of three equal points by paretoset", *map(int, paretorank(np.ones((3, 2)), sense=["min", "min"])))
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
paretoset (nan,0)
moocore   (nan,0)
pymoo     (nan,0)
ranks of three equal points by paretoset 1 2 3
SEEN
echo "as described"
