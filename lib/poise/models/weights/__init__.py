"""Weight files of every family: reading, recognising, loading into a network, converting, and the
list of the released ones.

    reading     a file of torch.save, without running code of it
    nesting     how deep the tuples of a pickle lie within each other, before they are made
    families    which network a set of names and shapes belongs to
    formats     the ways in which weights are named and wrapped, and how each becomes Poise's
    loading     load and load_pretrained, with their report
    converting  Poise's names to the released ones and back
    experiment  the text in a file that says which experiment trained it
    origin      what a file was trained with, where that can be known: load_trained, for whatever
predicts
"""

from poise.models.weights.loading import LoadReport, load, load_pretrained
from poise.models.weights.reading import (
    UnreadableError,
    WeightFile,
    is_plain,
    read_state_dict,
    read_tensors,
    read_weight_file,
    save,
    unreadable,
    with_experiment,
    with_joints,
)

__all__ = [
    "LoadReport",
    "UnreadableError",
    "WeightFile",
    "is_plain",
    "load",
    "load_pretrained",
    "read_state_dict",
    "read_tensors",
    "read_weight_file",
    "save",
    "unreadable",
    "with_experiment",
    "with_joints",
]
