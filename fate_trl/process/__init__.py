"""Other people's code bounded in time (bounded.py), several processes as one (team.py), and being stopped (stop.py)."""
