"""Tasks and the environments behind them: episodes and their adapter to TRL, scripted policies, the built-in suites."""
