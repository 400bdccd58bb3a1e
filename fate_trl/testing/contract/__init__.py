"""The contract suite, for authors of plugins: what hookspecs promises, checked on every component of one plugin.

    pytest --pyargs fate_trl.testing.contract --fate-plugin NAME [--fate-args '{"component": {"argument": 1}}']

NAME is an installed plugin's name, `./file.py`, or `fate-trl` for the built-ins. A component whose factory needs
arguments is skipped, with the reason, unless they are given. Nothing here needs a network or a GPU, and torch is needed
for losses only.
"""
