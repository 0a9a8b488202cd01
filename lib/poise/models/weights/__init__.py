"""Read, identify, load and convert weight files of every family, and list the released ones.

reading     read and write files without running their code
nesting     measure how deep tuples of a pickle are nested
families    identify the network of a set of names and shapes
formats     names of tensors in published files, and their conversion
loading     load and load_pretrained, with a report
converting  convert files to the published formats
zoo         the released files of models/zoo.yaml
"""

from poise.models.weights.loading import LoadReport, load, load_pretrained
from poise.models.weights.reading import (
    WeightFile,
    WeightReadError,
    add_experiment,
    add_keypoint_names,
    is_plain,
    read_error,
    read_state_dict,
    read_tensors,
    read_weight_file,
    save,
)

__all__ = [
    "LoadReport",
    "WeightReadError",
    "WeightFile",
    "is_plain",
    "load",
    "load_pretrained",
    "read_state_dict",
    "read_tensors",
    "read_weight_file",
    "save",
    "read_error",
    "add_experiment",
    "add_keypoint_names",
]
