"""The keys of registries are the names that experiment and dataset files are validated against."""

from poise.config import datasets as dataset_files
from poise.config import validate
from poise.datasets import READERS
from poise.engine.optim import OPTIMIZERS
from poise.evaluation.evaluators import EVALUATORS


def test_readers_are_those_that_dataset_files_may_name():
    assert tuple(READERS) == dataset_files.FORMATS


def test_evaluators_are_those_that_dataset_files_may_name():
    assert tuple(EVALUATORS) == tuple(dataset_files.METRICS)


def test_optimizers_are_those_that_experiments_may_name():
    assert tuple(OPTIMIZERS) == validate.OPTIMIZERS
