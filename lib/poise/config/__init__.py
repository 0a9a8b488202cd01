"""Configuration: keys and defaults (default.py), reading a file (loading.py), checks
(checking.py), old files (legacy.py).
"""

from poise.config.datasets import data_path
from poise.config.defaults import default_config
from poise.config.loading import changed, experiment_name, load

__all__ = ["changed", "data_path", "default_config", "experiment_name", "load"]
