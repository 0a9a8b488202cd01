"""PoseNAS architecture search, see docs/search.md.

Search space and derivation: space.py, architecture.py. Supernet: mixed.py, supernet.py. Bilevel
optimization: bilevel.py, split.py. A whole run: run.py.
"""
