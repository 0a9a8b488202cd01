"""Test reading images from folders and archives, and JSON files."""

import struct
import unicodedata
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from poise.errors import DataError
from poise.io.image_folder import ImageFolder
from poise.io.json_file import read_json
from torch.utils.data import DataLoader

NFC, NFD = (unicodedata.normalize(form, "größe_é.jpg") for form in ("NFC", "NFD"))


def picture(seed=0, height=60, width=80):
    """Return a smooth image, whose JPEG is small and has no redundant bytes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(ending, seed=0, **options):
    done, data = cv2.imencode(
        ending,
        picture(seed),
        [value for pair in options.items() for value in (getattr(cv2, pair[0]), pair[1])],
    )
    assert done
    return data.tobytes()


JPEG, PNG = encoded(".jpg"), encoded(".png")


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def refusal(call, *args):
    with pytest.raises(DataError) as error:
        call(*args)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path):
    """images/val2017 as a folder."""
    path = tmp_path / "images" / "val2017"
    path.mkdir(parents=True)
    return ImageFolder(path)


def archive(path, members, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return ImageFolder(path)


# plain files --------------------------------------------------------------------------------------


def test_image_folder_reads_files(folder):
    (folder.location / "a.png").write_bytes(PNG)
    (folder.location / "below").mkdir()
    (folder.location / "below" / "ä ö.jpg").write_bytes(JPEG)
    folder.check()
    image = folder.read("a.png")
    assert image.dtype == np.uint8 and np.array_equal(image, picture())  # BGR, as it was drawn
    assert np.array_equal(folder.read("below/ä ö.jpg"), decoded(JPEG))


@pytest.mark.parametrize("kind", ["gray", "alpha", "16 bit"])
def test_image_folder_read_gives_three_uint8_channels(folder, kind):
    image = {
        "gray": picture()[:, :, 0],
        "alpha": np.dstack([picture(), np.full((60, 80), 9, np.uint8)]),
        "16 bit": picture().astype(np.uint16) * 257,
    }[kind]
    cv2.imwrite(str(folder.location / "a.png"), image)
    read = folder.read("a.png")
    assert read.shape == (60, 80, 3) and read.dtype == np.uint8
    assert np.array_equal(read[:, :, 0], picture()[:, :, 0])


def test_image_folder_read_ignores_exif_by_default(folder):
    """Annotations refer to the stored pixels."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert decoded(turned).shape == (80, 60, 3), "this file says that it wants to be turned"
    (folder.location / "a.jpg").write_bytes(turned)
    assert np.array_equal(folder.read("a.jpg"), decoded(JPEG))


def with_thumbnail(data):
    """Return a JPEG with a complete JPEG in its APP1 segment, as cameras write it."""
    inside = b"Exif\0\0" + encoded(".jpg", seed=1)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(inside) + 2) + inside + data[2:]


WHOLE = {
    "jpeg": JPEG,
    "png": PNG,
    "progressive": encoded(".jpg", IMWRITE_JPEG_PROGRESSIVE=1),
    "restarts": encoded(".jpg", IMWRITE_JPEG_RST_INTERVAL=1),
    "thumbnail": with_thumbnail(JPEG),
    "trailing text": JPEG + b"\r\nappended by a gallery",
    "trailing zeros": JPEG + bytes(3000),
    "trailing jpeg": JPEG + encoded(".jpg", seed=2),
    "trailing start of scan": JPEG + b"\xff\xda\x12\x34 not a scan",
    "png with trailing bytes": PNG + bytes(500),
    "bmp": encoded(".bmp"),
    "webp": encoded(".webp", IMWRITE_WEBP_QUALITY=90),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_image_folder_complete_images_are_read(folder, kind):
    (folder.location / "a").write_bytes(WHOLE[kind])
    assert np.array_equal(folder.read("a"), decoded(WHOLE[kind]))
    assert np.abs(folder.read("a").astype(int) - picture()).mean() < 12


def cut(data, share):
    return data[: int(len(data) * share)]


CUT = {
    "jpeg, last byte": JPEG[:-1],
    "jpeg, half": cut(JPEG, 0.5),
    "jpeg, nine tenths": cut(JPEG, 0.9),
    "jpeg, header": JPEG[:100],
    "progressive, nine tenths": cut(WHOLE["progressive"], 0.9),
    "progressive, half": cut(WHOLE["progressive"], 0.5),
    # the thumbnail's end mark must not pass for the image's
    "thumbnail, nine tenths": cut(WHOLE["thumbnail"], 0.95),
    "png, half": cut(PNG, 0.5),
    "png, last byte": PNG[:-1],
}


@pytest.mark.parametrize("kind", CUT)
def test_image_folder_truncated_image_raises(folder, kind):
    (folder.location / "a.jpg").write_bytes(CUT[kind])
    assert (
        refusal(folder.read, "a.jpg")
        == f"{folder.location}/a.jpg: the image file is cut off; download it again"
    )


def test_image_folder_invalid_image_raises(folder):
    header = struct.pack(
        "<IIIIiiHHIIiiII", 1 << 30, 0, 54, 40, 1 << 20, 1 << 20, 1, 24, 0, 0, 0, 0, 0, 0
    )
    for name, data, fault in [
        ("empty.jpg", b"", "the image file is empty; download it again"),
        ("text.jpg", b"404: not found\n", "not an image that OpenCV can read"),
        (
            "marks only.jpg",
            b"\xff\xd8\xff\xda\x00\x08\x01\xff\xd9",
            "not an image that OpenCV can read",
        ),
        (
            "huge.bmp",
            b"BM" + header,
            "claims 1048576 x 1048576 pixels, and at most 110 million are read",
        ),
    ]:
        (folder.location / name).write_bytes(data)
        text = refusal(folder.read, name)
        assert text.startswith(f"{folder.location}/{name}: ") and fault in text


def test_image_folder_missing_image_raises(folder):
    assert (
        refusal(folder.read, "none.jpg")
        == f"{folder.location / 'none.jpg'}: cannot read the image (No such file or directory);"
        " check DATASET.ROOT and the annotation file"
    )
    for name in ("", "a\0b.jpg"):
        assert "is no name; names are relative to the image folder" in refusal(folder.read, name)
    assert "the image name ../a.jpg leads out of the folder" in refusal(folder.read, "../a.jpg")


def test_image_folder_missing_folder_or_archive_raises(tmp_path):
    text = refusal(ImageFolder(tmp_path / "images" / "val2017").check)
    assert (
        text
        == f"{tmp_path}/images/val2017: no such image folder; check DATASET.ROOT and the set's name"
    )
    assert "no such archive; DATASET.DATA_FORMAT zip reads images/<split>.zip" in refusal(
        ImageFolder(tmp_path / "val2017.zip").check
    )
    (tmp_path / "file").touch()
    assert "no such image folder" in refusal(ImageFolder(tmp_path / "file").check)


@pytest.mark.parametrize("kept_in", ["folder", "archive"])
@pytest.mark.parametrize(
    "there, asked, hint",
    [
        ("a.JPG", "A.jpg", "; there is a.JPG"),
        ("a.jpeg", "a.jpg", "; there is a.jpeg"),
        ("cam 1/a.jpg", "Cam 1/a.jpg", "; there is cam 1/a.jpg"),
        ("cam 1/a.png", "cam 1/a.jpg", "; there is a.png"),
        (
            "cam 1/b/a.jpg",
            "cam 1\\b\\a.jpg",
            "; there is cam 1/b/a.jpg (its path has /, where file_name has backslashes)",
        ),
        (
            NFD,
            NFC,
            (
                f"; there is {NFD} (its letters are written in another Unicode normalization, NFD"
                " and not NFC; rename the files or change file_name)"
            ),
        ),
        (
            NFC,
            NFD,
            (
                f"; there is {NFC} (its letters are written in another Unicode normalization, NFC"
                " and not NFD; rename the files or change file_name)"
            ),
        ),
        (
            f"c/{NFD}",
            f"c\\{NFC}",
            (
                f"; there is c/{NFD} (its path has /, where file_name has backslashes, and its"
                " letters are written in another Unicode normalization, NFD and not NFC; rename"
                " the files or change file_name)"
            ),
        ),
        ("cam 1/a.jpg", "cam 2/a.jpg", ""),
        ("a.jpg", "b.jpg", ""),
        ("a.jpg", "a.jpg/b.jpg", ""),
    ],
)
def test_image_folder_misspelled_image_suggests_the_file(tmp_path, kept_in, there, asked, hint):
    if kept_in == "archive":
        images = archive(tmp_path / "val.zip", {"val/": b"", f"val/{there}": JPEG})
        assert (
            refusal(images.read, asked) == f"{images.location}: the archive holds no {asked}{hint}"
        )
        return
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG)
    if there not in {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")}:
        pytest.skip("this file system changes names")
    text = refusal(ImageFolder(tmp_path).read, asked)
    reason = "Not a directory" if asked.startswith(f"{there}/") else "No such file or directory"
    assert (
        text == f"{tmp_path}/{asked}: cannot read the image ({reason}); check DATASET.ROOT and the"
        f" annotation file{hint}"
    )


# archives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"]
)
@pytest.mark.parametrize("below", ["", "val2017/"], ids=["root", "folder"])
def test_image_archive_reads_members(tmp_path, compression, below):
    images = archive(
        tmp_path / "val2017.zip", {f"{below}a.png": PNG, f"{below}sub/b.jpg": JPEG}, compression
    )
    images.check()
    assert np.array_equal(images.read("a.png"), picture())
    assert np.array_equal(images.read("sub/b.jpg"), decoded(JPEG))


def test_image_archive_root_has_priority(tmp_path):
    images = archive(
        tmp_path / "images.zip", {"a.png": PNG, "images/a.png": encoded(".png", seed=5)}
    )
    assert np.array_equal(images.read("a.png"), picture())


def test_image_archive_invalid_raises(tmp_path):
    images = archive(tmp_path / "val2017.zip", {"cut.jpg": cut(JPEG, 0.5), "empty.jpg": b""})
    assert refusal(images.read, "none.jpg") == f"{images.location}: the archive holds no none.jpg"
    assert (
        refusal(images.read, "cut.jpg")
        == f"{images.location}/cut.jpg: the image file is cut off; download it again"
    )
    assert "empty" in refusal(images.read, "empty.jpg")
    (tmp_path / "text.zip").write_text("no archive")
    assert refusal(ImageFolder(tmp_path / "text.zip").read, "a.jpg").startswith(
        f"{tmp_path}/text.zip: cannot open the archive ("
    )
    (tmp_path / "half.zip").write_bytes(cut(images.location.read_bytes(), 0.5))
    assert "cannot open the archive" in refusal(ImageFolder(tmp_path / "half.zip").read, "a.jpg")


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA],
    ids=["stored", "deflated", "lzma"],
)
def test_image_archive_corrupt_member_raises(tmp_path, compression):
    images = archive(tmp_path / "val2017.zip", {"a.bmp": encoded(".bmp")}, compression)
    data = bytearray(images.location.read_bytes())
    for place in range(60, len(data) - 200, 5):
        data[place] ^= 0x5A
    images.location.write_bytes(data)
    assert refusal(ImageFolder(images.location).read, "a.bmp").startswith(
        f"{images.location}: cannot read a.bmp ("
    )


class Pictures:
    """A dataset over an ImageFolder that is opened before the workers are forked."""

    def __init__(self, images, names):
        self.images, self.names = images, names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return zlib.crc32(self.images.read(self.names[index]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_image_archive_workers_read_independently(tmp_path, start):
    members = {f"{i:03d}.png": encoded(".png", seed=i) for i in range(40)}
    images = archive(tmp_path / "val2017.zip", members)
    pictures = Pictures(images, sorted(members) * (8 if start == "fork" else 1))
    alone = [pictures[i] for i in range(len(pictures))]
    assert len(set(alone)) == 40
    loader = DataLoader(
        pictures,
        batch_size=None,
        num_workers=3 if start == "fork" else 1,
        multiprocessing_context=start,
    )
    assert list(loader) == alone


# JSON ---------------------------------------------------------------------------------------------


def test_read_json_returns_the_content(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, "ä", null]}', encoding="utf-8")
    assert read_json(path, "annotation file") == {"a": [1, 2.5, "ä", None]}


def test_read_json_invalid_file_raises(tmp_path):
    path = tmp_path / "a.json"
    assert (
        refusal(read_json, path, "annotation file", "check DATASET.ROOT")
        == f"{path}: cannot read the annotation file (No such file or directory); check"
        " DATASET.ROOT"
    )
    assert "(Is a directory)" in refusal(read_json, tmp_path, "detection file")
    for text in ("", "{", "[1, 2", "{'a': 1}", "[1] 2", "nul", "[" * 5000):
        path.write_text(text)
        assert refusal(read_json, path, "detection file").startswith(
            f"{path}: the detection file is not valid JSON ("
        )
    path.write_bytes(b'["\xff\xfe"]')
    assert "not valid JSON" in refusal(read_json, path, "detection file")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "nan", "-NaN"])
def test_read_json_nan_raises(tmp_path, word):
    """Python's json writes NaN; the error must be clearer than 'unexpected character'."""
    path = tmp_path / "a.json"
    line = f'{{"id": 4, "file_name": "größe.jpg", "bbox": [1.0, {word}, 3, 4]}}'
    path.write_text(f'{{"annotations": [\n{line}\n]}}', encoding="utf-8")
    text = refusal(read_json, path, "annotation file")
    bare = word.removeprefix("-")  # the parser stops behind the sign
    place = f"line 2, column {line.index(bare) + 1}"
    assert text.startswith(
        f"{path}: the annotation file holds {bare} in {place}, where JSON has only finite numbers: "
    )
    assert '{"id": 4' in text and "correct or remove this entry" in text


def test_read_json_number_beyond_double_raises(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1e999]")
    assert f"{path}: the annotation file is not valid JSON (number is infinity" in refusal(
        read_json, path, "annotation file"
    )
