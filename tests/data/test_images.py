"""Folders of images: each sample once, in one split, whatever the names; nasty files are refused by name or counted."""

import os
import re
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import ExifTags, Image

from research.data.images import images
from research.data.spec import Images, MemoryDataset
from research.files import pictures

LABELS = ("cat", "dog")


def make_image(number: int, side: int = 6, mode: str = "RGB") -> Image.Image:
    """Return an image whose pixels its number decides."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make_folder(root: Path, per_class: int = 5, labels: tuple[str, ...] = LABELS) -> Path:
    """Write a folder of PNGs, five of each class."""
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for index in range(per_class):
            make_image(100 * number + index).save(root / label / f"{index}.png")
    return root


def save(path: Path, image: Image.Image, **settings: Any) -> bool:
    """Write an image; true, so that a lambda may do it."""
    path.parent.mkdir(exist_ok=True)
    image.save(path, **settings)
    return True


def encode(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def make_bomb(side: int) -> bytes:
    """Return a small PNG that claims to be large."""
    content = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def make_deep() -> bytes:
    """Return a PNG of 6 x 6 colours, 16 bits each."""
    content = encode(Image.new("RGB", (6, 6)), "PNG")
    chunks = b""
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(6 * 37)))):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content[: content.index(b"IHDR") - 4] + chunks + content[content.index(b"IEND") - 4 :]


def list_samples(data: MemoryDataset[Any]) -> list[tuple[bytes, int]]:
    """Return pixels and class of every sample."""
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    return [(x.numpy().tobytes(), int(y)) for split in splits for x, y in zip(split.inputs, split.targets, strict=True)]


def test_classes_are_folders_in_sorted_order(tmp_path: Path) -> None:
    data = images(str(make_folder(tmp_path, labels=("dog", "cat", "ant"))), test_fraction=0.2)
    assert data.shape == Images(3, 6, 6, 3)
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (9, 3, 3)
    expected = {
        (np.asarray(make_image(100 * number + index)).transpose(2, 0, 1).tobytes(), ["ant", "cat", "dog"].index(label))
        for number, label in enumerate(("dog", "cat", "ant"))
        for index in range(5)
    }
    assert set(list_samples(data)) == expected
    assert len(list_samples(data)) == 15, "each once"
    assert data.notes == ("classes: 0 ant, 1 cat, 2 dog", "samples in training: 3 of ant, 3 of cat, 3 of dog")
    assert data.baseline == {"val/acc majority": 1 / 3}, "each split has its share of every class"
    assert data.train.inputs.dtype == torch.uint8, "a byte a number"


def test_the_split_depends_on_contents_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for label in LABELS:
        for file in (tmp_path / "b" / label).iterdir():
            file.rename(file.with_name(f"{9 - int(file.stem)} renamed.png"))
    first, second = images(str(tmp_path / "a")), images(str(tmp_path / "b"))
    assert first.digest == second.digest != images(str(tmp_path / "a"), split_seed=1).digest
    assert torch.equal(first.val.inputs, second.val.inputs)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_every_kind_of_file_is_read(tmp_path: Path, kind: str) -> None:
    for label, grey in zip(LABELS, (50, 200), strict=True):
        (tmp_path / label).mkdir()
        for index in range(2):
            image = Image.new("RGB", (8, 8), (grey, grey, 4 * index))
            image.save(tmp_path / label / f"{index}.{kind}", kind)
    data = images(str(tmp_path))
    assert len(data.train) + len(data.val) == 4
    for pixels, number in list_samples(data):
        assert abs(pixels[0] - (50, 200)[number]) < 8


@pytest.mark.parametrize("names", ["train Dev testing", "training_set validation_set test_set", "train2017 eval testset"])
def test_folders_that_are_splits_are_the_splits(tmp_path: Path, names: str) -> None:
    train, dev, test = names.split()
    make_folder(tmp_path / train, 4)
    for number, part in enumerate((dev, test)):
        for label in LABELS:
            (tmp_path / part / label).mkdir(parents=True)
            make_image(1000 + number * 10 + len(label) + (label == "cat")).save(tmp_path / part / label / "a.png")
    shutil.copy(tmp_path / train / "cat/0.png", tmp_path / dev / "cat/leak.png")
    data = images(str(tmp_path))
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (7, 3, 2)
    assert "left out: 1 of train that are in val too" in data.notes
    assert "splits are those of the folders: data.val_fraction does not count" in data.notes
    with pytest.raises(ValueError, match=r"data\.test_fraction=0\.2: the folders say which images are train, val, test\n"):
        images(str(tmp_path), test_fraction=0.2)
    shutil.rmtree(tmp_path / dev)
    data = images(str(tmp_path), val_fraction=0.25)
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2), "train/ alone is split"


def test_digits_are_images_of_0_to_255() -> None:
    data = images()
    assert data.shape == Images(1, 8, 8, 10)
    assert (len(data.train), len(data.val)) == (1438, 359)
    assert (int(data.train.inputs.min()), int(data.train.inputs.max())) == (0, 255)


# What is beside ten good images -> what is said, and how many samples there are; settings that differ from the defaults.
Make = Callable[[Path], object]
REFUSED: dict[str, tuple[Make, str]] = {
    "a file cut short": (
        lambda root: (root / "cat/bad.png").write_bytes((root / "cat/0.png").read_bytes()[:90]),
        "1 damaged images",
    ),
    "a JPEG cut short": (
        lambda root: (root / "cat/bad.jpg").write_bytes(encode(make_image(7), "JPEG")[:-40]),
        "1 damaged images",
    ),
    "a header alone": (lambda root: (root / "cat/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "1 files that are no images"),
    "an empty file": (lambda root: (root / "cat/bad.png").touch(), "1 empty files"),
    "a page in place of an image": (
        lambda root: (root / "cat/bad.jpg").write_text("<html>404</html>"),
        "1 files that are no images",
    ),
    "a bomb": (
        lambda root: (root / "cat/bad.png").write_bytes(make_bomb(1 << 15)),
        "1 images of over 67 megapixels",
    ),
    "an image of floats": (lambda root: Image.new("F", (6, 6)).save(root / "cat/bad.tiff"), "1 images of 32-bit numbers"),
    "an image outside of a class": (
        lambda root: make_image(7).save(root / "bad.png"),
        "1 images outside the folder of a class",
    ),
    "a class without images": (lambda root: (root / "bad").mkdir(), "1 class folders without images"),
    "an image in two classes": (
        lambda root: [save(root / label / "bad.png", make_image(7)) for label in LABELS],
        "2 images that are in several classes",
    ),
    "a file without permission": (lambda root: (root / "cat/bad.png").touch(0o000), "1 files without permission"),
}
TREATED: dict[str, tuple[Make, dict[str, Any], str, int]] = {
    "a repeat under another name": (lambda root: shutil.copy(root / "cat/0.png", root / "cat/z.png"), {}, "1 repeated", 10),
    "a repeat of another kind of file": (lambda root: make_image(0).save(root / "cat/z.bmp"), {}, "1 repeated", 10),
    "a repeat in colours of a grey image": (
        lambda root: [save(root / f"cat/{mode}.png", make_image(7, mode="L").convert(mode)) for mode in ("L", "RGB")],
        {},
        "1 repeated",
        11,
    ),
    "a repeat where grey is asked": (
        lambda root: make_image(0, mode="L").save(root / "cat/z.png"),
        {"channels": 1},
        "1 repeated",
        10,
    ),
    "a repeat of another size": (
        lambda root: [save(root / f"cat/{side}.png", Image.new("RGB", (side, side), "red")) for side in (6, 12)],
        {"size": 6},
        "1 repeated",
        11,
    ),
    "text among the images": (lambda root: (root / "cat/labels.txt").touch(), {}, "left out: 1 .txt files", 10),
    "a kind that is not read": (lambda root: (root / "cat/a.heic").touch(), {}, "left out: 1 .heic files", 10),
    "files of an operating system": (
        lambda root: [(root / "cat" / name).write_bytes(b"x") for name in ("._0.png", "Thumbs.db")],
        {},
        "left out: 2 hidden files",
        10,
    ),
    "a folder of a notebook": (
        lambda root: shutil.copytree(root / "cat", root / ".ipynb_checkpoints"),
        {},
        "left out: 5 hidden files",
        10,
    ),
    "a link in a circle": (lambda root: (root / "cat/up").symlink_to(root / "cat"), {}, "", 10),
    "a broken link": (lambda root: (root / "cat/a.png").symlink_to("none"), {}, "1 broken links or devices", 10),
    "a suffix in capitals": (lambda root: make_image(7).save(root / "cat/A.PNG"), {}, "", 11),
    "a name in another script": (lambda root: make_image(7).save(root / "cat/ネコ \n.png"), {}, "", 11),
    "an image of another size": (
        lambda root: make_image(7, 12).save(root / "cat/a.png"),
        {"size": 6},
        "changed: 1 resized",
        11,
    ),
    "an image of another shape": (
        lambda root: Image.new("RGB", (12, 6)).save(root / "cat/a.png"),
        {"size": [6, 6]},
        "changed: 1 resized, 1 stretched",
        11,
    ),
    "an animation": (
        lambda root: make_image(7).save(root / "cat/a.gif", save_all=True, append_images=[make_image(8)]),
        {},
        "1 of several frames (the first is read)",
        11,
    ),
    "CMYK": (lambda root: make_image(7, mode="CMYK").save(root / "cat/a.jpg"), {}, "1 converted from CMYK", 11),
    "16 bits": (
        lambda root: Image.fromarray(np.full((6, 6), 40_000, dtype=np.uint16)).save(root / "cat/a.png"),
        {},
        "1 reduced from 16 bits",
        11,
    ),
    "colours of 16 bits": (lambda root: (root / "cat/a.png").write_bytes(make_deep()), {}, "1 reduced from 16 bits", 11),
    "transparency": (
        lambda root: Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(root / "cat/a.png"),
        {},
        "1 transparent, laid on white",
        11,
    ),
    "an opaque image that could be transparent": (
        lambda root: make_image(7, mode="RGBA").save(root / "cat/a.png"),
        {},
        "",
        11,
    ),
    "a grey image among colours": (
        lambda root: make_image(7, mode="L").save(root / "cat/a.png"),
        {},
        "changed: 1 grey, as colours",
        11,
    ),
    "a palette": (lambda root: make_image(7, mode="P").save(root / "cat/a.png"), {}, "changed: 1 converted from a palette", 11),
    "colours where grey is asked": (lambda root: None, {"channels": 1}, "", 10),
    "a class of one image": (
        lambda root: save(root / "owl/a.png", make_image(7)),
        {},
        "val has no sample of 1 classes: owl",
        11,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_nasty_file_is_refused_or_counted(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    if "permission" in name and os.geteuid() == 0:
        pytest.skip("root may read everything")
    make(make_folder(tmp_path))
    with pytest.raises(ValueError, match=r"data\.path: ") as error:
        images(str(tmp_path))
    assert words in str(error.value)
    assert "bad" in str(error.value), "the file is named"
    assert "data.defects=skip" in str(error.value)
    data = images(str(tmp_path), defects="skip")
    assert len(list_samples(data)) == 10
    assert words in "".join(data.notes)


@pytest.mark.parametrize("name", TREATED)
def test_an_odd_file_is_treated_as_stated(tmp_path: Path, name: str) -> None:
    make, settings, words, number = TREATED[name]
    make(make_folder(tmp_path))
    data = images(str(tmp_path), **settings)
    assert len(list_samples(data)) == number
    assert words in "; ".join(data.notes) if words else len(data.notes) == 2


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda root: shutil.rmtree(root / "dog"), {}, "holds 5 images of the one class 'cat'"),
        (lambda root: [file.unlink() for file in root.glob("*/*")], {}, "it is empty"),
        (lambda root: make_image(7, 9).save(root / "cat/9.png"), {}, "9.png has 9 x 9"),
        (lambda root: None, {"size": [6]}, "data.size=[6]: it takes a number of pixels, or [HEIGHT,WIDTH]"),
        (lambda root: None, {"pattern": "*.jpg"}, "10 .png files"),
        (lambda root: None, {"val_fraction": 0.6, "test_fraction": 0.39}, "leave no training sample of 10"),
        (lambda root: None, {"max_gb": 1e-7}, "10 images of 3 x 6 x 6 take 1.08e-06 GB"),
        (lambda root: [(root / name / "a").mkdir(parents=True) for name in ("val", "train")], {}, "train, val beside cat, dog"),
        (lambda root: [(root / "cat").rename(root / "val"), (root / "dog").rename(root / "test")], {}, "(test, val), no"),
        (lambda root: [(root / "cat").rename(root / "train"), (root / "dog").rename(root / "unsup")], {}, "beside unsup"),
        (lambda root: [(root / "cat").rename(root / "Images"), (root / "dog").rename(root / "masks")], {}, "data=segmentation"),
        (lambda root: (root / "dog").rename(root / "unlabeled"), {}, "holds 5 images of the one class 'cat'"),
    ],
    ids=["class", "file", "sizes", "size", "pattern", "training", "memory", "beside", "alone", "unsup", "masks", "unlabeled"],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, make: Make, settings: dict[str, Any], words: str) -> None:
    make(make_folder(tmp_path))
    with pytest.raises(ValueError, match=r"^data\.") as error:
        images(str(tmp_path), **settings)
    assert words in str(error.value)


def test_classes_may_have_names_of_splits(tmp_path: Path) -> None:
    data = images(str(make_folder(tmp_path, labels=("training", "testing", "deploy"))))
    assert data.classes == ("deploy", "testing", "training")


def test_settings_of_files_need_a_path() -> None:
    with pytest.raises(ValueError, match=r"data\.size=8 is of files, and needs data\.path\n"):
        images(size=8)


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    """Height and width change places, before they are compared and after."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for index, label in enumerate(LABELS * 2):
        (tmp_path / label).mkdir(exist_ok=True)
        image = Image.new("L", (8, 4))
        image.paste(255, (0, 0, 2, 4))
        image.putpixel((7, 0), index)
        image.save(tmp_path / label / f"{index}.png", exif=exif)
    data = images(str(tmp_path))
    assert data.shape == Images(1, 8, 4, 2)
    assert "changed: 4 turned as EXIF says" in data.notes
    assert (data.train.inputs[:, 0, :2] == 255).all(), "what was on the left is on top"


def test_transparent_grey_and_16_bits_become_the_right_numbers(tmp_path: Path) -> None:
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (pictures.read_picture(tmp_path / "clear.png", None, 1).pixels == 255).all()
    assert (pictures.read_picture(tmp_path / "deep.png", None, 1).pixels == 40_000 >> 8).all()


def test_the_order_does_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, 20)
    digests = []
    for count in (1, 8):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        digests.append(images(str(tmp_path)).digest)
    assert digests[0] == digests[1]


def test_classes_stay_with_their_images_where_some_are_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path, 20)
    shutil.copy(tmp_path / "cat/3.png", tmp_path / "cat/z.png")
    (tmp_path / "cat/10.png").write_bytes(b"")
    expected = {
        (np.asarray(make_image(100 * number + index)).transpose(2, 0, 1).tobytes(), number)
        for number in range(2)
        for index in range(20)
        if (number, index) != (0, 10)
    }
    assert set(list_samples(images(str(tmp_path), defects="skip"))) == expected


def test_the_line_for_masks_can_be_typed_where_folders_have_spaces(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "my data (v1)", labels=("images", "masks"))
    with pytest.raises(ValueError, match="which are no classes") as refused:
        images(str(root))
    typed = re.search("give (data=segmentation .*), or rename", str(refused.value))
    assert typed
    words = shlex.split(typed[1])
    values = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(words)}
    assert values == {"data": "segmentation", "data.images": f"{root}/images", "data.masks": f"{root}/masks"}
