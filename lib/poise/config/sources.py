"""Download sources of COCO and MPII, automatic and manual.

Sizes and checksums of COCO's archives are those of the files that cocodataset.org links, which are
in its bucket at Amazon, where they are available over HTTPS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

COCO_BASE = "https://s3.amazonaws.com/images.cocodataset.org"
_COCO_TERMS = (
    "annotations CC BY 4.0; each image has the licence of its author on Flickr, see"
    " cocodataset.org/#termsofuse"
)


@dataclass(frozen=True)
class Archive:
    """An archive that can be downloaded.

    Attributes:
        name: for --only.
        path: below the base URL.
        size: in bytes; 0 if unknown.
        digest: 'md5:...', the digits of the sha256, or '' if none was published.
        members: {name of a file, or of a folder that ends in /: its path below the dataset's root}.
        files: number of files after unpacking.
        default: whether it is downloaded without being named.
    """

    name: str
    path: str
    size: int
    digest: str
    members: dict[str, str]
    files: int
    default: bool = True

    def place(self, member: str) -> str | None:
        """Return the path of a member below the dataset's root; None to skip it."""
        for source, target in self.members.items():
            if member == source:
                return target
            if source.endswith("/") and member.startswith(source) and len(member) > len(source):
                return target + member[len(source) :]
        return None

    @property
    def folder(self) -> str:
        """Return the folder of images that it fills; '' for single files."""
        return next((target for source, target in self.members.items() if source.endswith("/")), "")


@dataclass(frozen=True)
class ManualDownload:
    """A file, or a folder of images, that cannot be downloaded by a program.

    Attributes:
        path: below the dataset's root.
        what: its content.
        how: instructions.
        check: the name in poise.datasets.prepare of how it is validated.
        needed_for: what does not work without it.
    """

    path: str
    what: str
    how: str
    check: str
    needed_for: str


@dataclass(frozen=True)
class Source:
    """The downloads of a dataset.

    Attributes:
        name: of the dataset.
        root: its default folder.
        base: base URL of the archives.
        archives: automatic downloads.
        manual_downloads: the other files.
        terms: of use.
        local: archives that the user may put into the folder, which are then unpacked.
    """

    name: str
    root: str
    base: str
    archives: tuple[Archive, ...]
    manual_downloads: tuple[ManualDownload, ...]
    terms: str
    local: tuple[Archive, ...] = ()


def _images(split: str, size: int, digest: str, files: int, default: bool = True) -> Archive:
    return Archive(
        split, f"zips/{split}.zip", size, digest, {f"{split}/": f"images/{split}/"}, files, default
    )


_DETECTIONS = (
    "open the README of HRNet (github.com/leoxiaobin/deep-high-resolution-net.pytorch), section"
    " Data preparation, follow the link to the person detection results"
)
SOURCES = {
    "coco": Source(
        "coco",
        "data/coco",
        COCO_BASE,
        (
            Archive(
                "annotations",
                "annotations/annotations_trainval2017.zip",
                252_907_541,
                "md5:f4bbac642086de4f52a3fdda2de5fa2c",
                {
                    f"annotations/person_keypoints_{split}2017.json": (
                        f"annotations/person_keypoints_{split}2017.json"
                    )
                    for split in ("train", "val")
                },
                2,
            ),
            _images("val2017", 815_585_330, "md5:442b8da7639aecaf257c1dceb8ba8c80", 5_000),
            _images("train2017", 19_336_861_798, "md5:cced6f7f71b7629ddf16f17bbcfab6b2", 118_287),
            Archive(
                "image_info",
                "annotations/image_info_test2017.zip",
                0,
                "",
                {
                    "annotations/image_info_test-dev2017.json": (
                        "annotations/image_info_test-dev2017.json"
                    )
                },
                1,
                default=False,
            ),
            _images(
                "test2017",
                6_646_970_404,
                "md5:77ad2c53ac5d0aea611d422c0938fb35",
                40_670,
                default=False,
            ),
        ),
        (
            ManualDownload(
                "person_detection_results/COCO_val2017_detections_AP_H_56_person.json",
                "boxes of a person detector for val2017",
                f"{_DETECTIONS}, and put the file there",
                "detections",
                "TEST.USE_GT_BBOX False",
            ),
            ManualDownload(
                "person_detection_results/COCO_test-dev2017_detections_AP_H_609_person.json",
                "boxes of a person detector for test-dev2017",
                f"{_DETECTIONS}, and put the file there",
                "detections",
                "testing on test-dev2017",
            ),
        ),
        _COCO_TERMS,
    ),
    "mpii": Source(
        "mpii",
        "data/mpii",
        "",
        (),
        (
            ManualDownload(
                "images",
                "the images",
                "open human-pose.mpi-inf.mpg.de, read the terms there, download"
                " mpii_human_pose_v1.tar.gz (12.9 GB) and put it into the folder; this command then"
                " unpacks it",
                "images",
                "everything",
            ),
            *(
                ManualDownload(
                    f"annot/{name}",
                    what,
                    "open the README of HRNet"
                    " (github.com/leoxiaobin/deep-high-resolution-net.pytorch), section Data"
                    " preparation, follow the link to the annotations of MPII in json form, and put"
                    " the file there",
                    check,
                    needed_for,
                )
                for name, what, check, needed_for in (
                    ("train.json", "training persons", "persons", "training"),
                    ("valid.json", "validation persons", "persons", "testing"),
                    (
                        "gt_valid.mat",
                        "joints and head boxes of the validation set",
                        "head boxes",
                        "PCKh",
                    ),
                )
            ),
        ),
        "for research only; the images belong to their owners",
        local=(
            Archive(
                "images",
                "mpii_human_pose_v1.tar.gz",
                0,
                "",
                {"images/": "images/", "mpii_human_pose_v1/images/": "images/"},
                24_984,
            ),
        ),
    ),
}


def relative_to(member: str, place: Callable[[str], str | None]) -> str | None:
    """Return `place` of a member without a leading ./, which some tar programs write."""
    return place(str(PurePosixPath(member)) + ("/" if member.endswith("/") else ""))
