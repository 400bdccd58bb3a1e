"""What rows have in common is read, sampled from and trained on once.

sharing.py is where trainers come in: rollouts.py samples, updates.py lets a model's forward compute what its rows share
once, support.py says which models can, and trainer.py is GRPOTrainer with both. cache.py and attention.py are beneath.
"""
