"""Test that registry keys equal the names that the config accepts."""

from poise.config import dataset_yaml as dataset_files
from poise.config import validate
from poise.datasets import READERS
from poise.engine.optim import OPTIMIZERS
from poise.evaluation.evaluators import EVALUATORS


def test_readers_keys_equal_dataset_formats():
    assert tuple(READERS) == dataset_files.FORMATS


def test_evaluators_keys_equal_dataset_metrics():
    assert tuple(EVALUATORS) == tuple(dataset_files.METRICS)


def test_optimizers_keys_equal_config_names():
    assert tuple(OPTIMIZERS) == validate.OPTIMIZERS
