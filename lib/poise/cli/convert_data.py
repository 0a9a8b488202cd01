"""Convert annotations between COCO and labeling tools: python tools/convert_data.py labelme
coco LABELS TARGET --dataset data/hands/hands.yaml

Formats: coco (a .json), cvat ('CVAT for images 1.1', a .xml), labelme and yolo (a folder with a
file for each image). The dataset file names the keypoints and the category.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from poise.errors import ConfigError

FORMATS = ("coco", "yolo", "labelme", "cvat")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source_format",
        choices=FORMATS,
        metavar="FROM",
        help=f"input format: {', '.join(FORMATS)}",
    )
    parser.add_argument("target_format", choices=FORMATS, metavar="TO", help="format to write")
    parser.add_argument("source", help="file or folder to read")
    parser.add_argument("target", help="file or folder to write; existing files are replaced")
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="FILE",
        help="dataset file, or the name of one in experiments/datasets",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help=(
            "folder of the images; required for yolo, otherwise to check that they exist and have"
            " the annotated sizes"
        ),
    )
    args = parser.parse_args(argv)
    if args.source_format == args.target_format:
        raise ConfigError(
            f"{args.source_format} {args.target_format}: the two formats are the same"
        )
    from poise.config.dataset_yaml import load_dataset_info
    from poise.datasets import converters
    from poise.engine.logger import start_console
    from poise.errors import pluralize

    start_console()
    data = load_dataset_info(args.dataset)
    forms = (args.source_format, args.target_format)
    pictures = converters.convert(forms, args.source, args.target, data, images=args.images)
    persons = [person for picture in pictures for person in picture.persons]
    joints = sum(int((person.keypoints[:, 2] > 0).sum()) for person in persons)
    print(
        f"{pluralize(len(persons), 'person')} with {pluralize(joints, 'joint')} "
        f"in {pluralize(len(pictures), 'image')} written to {args.target}"
    )
    return 0
