"""Configuration: keys and defaults, loading, validation, dataset files."""

from poise.config.datasets import data_path
from poise.config.defaults import default_config
from poise.config.loading import experiment_name, load, override

__all__ = ["data_path", "default_config", "experiment_name", "load", "override"]
