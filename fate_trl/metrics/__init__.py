"""The metrics: their one definition, their intervals, the comparison of two policies, and what to be wary of.

definitions.py says what each metric means, intervals.py how sure it is, comparing.py how two policies differ, and
excluded.py which cases are left out; fronts.py which policies none dominates; concerns.py reads the numbers of a run.
"""

from .comparing import compare, gains, paired, regressions, sign_test
from .definitions import DIRECTIONS, LOOK_ALIKE, METRICS, Metric, objective_metric
from .excluded import MAX_ERROR_RATE, causes, check_errors, error_budget, is_error
from .fronts import dominators, isolation, most_isolated, objective_means, wished
from .intervals import FEW_CLUSTERS, wilson
from .repeatable import is_repeatable
from .summarizing import rows, summarize

__all__ = ["DIRECTIONS", "FEW_CLUSTERS", "LOOK_ALIKE", "MAX_ERROR_RATE", "METRICS", "Metric", "causes", "check_errors"]
__all__ += [
    "compare",
    "dominators",
    "error_budget",
    "gains",
    "is_error",
    "isolation",
    "most_isolated",
    "objective_means",
    "objective_metric",
    "paired",
    "regressions",
    "rows",
    "sign_test",
]
__all__ += ["is_repeatable", "summarize", "wilson", "wished"]
