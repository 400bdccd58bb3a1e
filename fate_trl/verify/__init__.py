"""The one place where verifiers are called (scoring.py), the four objectives, and the verifiers that are built in."""
