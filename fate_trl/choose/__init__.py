"""Which repair, and which reward: Pareto fronts (pareto.py), the selectors on them, and the built-in repair prompts."""
