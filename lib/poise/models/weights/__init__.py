"""Weight files of every family: reading, recognising, loading into a network, converting, and the
list of the released ones.

    reading     a file of torch.save, without running code of it
    nesting     how deep the tuples of a pickle lie within each other, before they are made
    families    which network a set of names and shapes belongs to
    formats     the ways in which weights are named and wrapped, and how each becomes Poise's
    loading     load and load_pretrained, with their report
    converting  Poise's names to the released ones and back
    experiment  the text in a file that says which experiment trained it
    origin      load_trained_weights: load weights for inference and warn of a mismatch
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
