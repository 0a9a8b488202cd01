"""The search for the cells of a PoseNAS network: docs/search.md. The space and the derivation
(space.py, architecture.py), the network that holds all candidates (mixed.py, supernet.py), the
alternating optimisation (bilevel.py, split.py), and a whole run (run.py).
"""
