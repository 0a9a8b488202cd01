"""DistributedContext over gloo, for the tests of this folder."""

from support.gloo_processes import forks, together

__all__ = ["forks", "together"]
