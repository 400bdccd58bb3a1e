"""The rounds on any learner, without torch: rounds.py is the run, and assemble.py makes one from a recipe.

stages.py does a stage once, evaluating.py has the stages that evaluate, repairing.py chooses among candidates,
tasks.py draws tasks, counts.py sums stages up, policies.py keeps what was trained, and reporter.py and trackers.py tell
others of it.
"""
