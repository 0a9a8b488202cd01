"""Command lines: parse arguments, call one function, print.

One module per command, each with `main(argv=None)`, which returns the exit status. `tools/NAME.py`
runs poise.cli.NAME. A module imports torch only after it has parsed the arguments, so that --help
is fast.
"""

#: what each command does; the names are those of the modules in this package
COMMANDS = {
    "train": "train an experiment",
    "test": "test an experiment",
    "search": "search the cells of a PoseNAS network",
    "demo": "find and draw poses in images or a video",
    "export": "export a network to ONNX, TorchScript or torch.export",
    "analyze": "analyze the errors of a result file",
    "plot_log": "plot the curves of training runs",
    "browse": "draw training samples",
    "check_data": "check the data of an experiment",
    "prepare_data": "download COCO, or check MPII",
    "convert_data": "convert annotations between COCO and the formats of labeling tools",
    "make_boxes": "run a person detector on a dataset",
    "make_synthetic": "draw a synthetic dataset",
    "convert_weights": "convert a weight file to another format",
    "download_weights": "download released weights",
    "get_flops": "print parameters and multiply-adds of a network",
    "print_config": "print the configuration of an experiment",
}
