"""Images with masks: each pixel has the class of its mask; nasty pairs are refused by name or counted."""

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from research.data.segmentation import segmentation
from research.data.spec import Images
from research.losses import IGNORE

SIDE = 6


def draw(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def save(root: Path, name: str, image: Image.Image | None, mask: Image.Image | None) -> bool:
    """Write an image and a mask of one name, or one of them; true, so that a lambda may do it."""
    if image:
        image.save(root / "images" / name)
    if mask:
        mask.save(root / "masks" / name)
    return True


def make_mask(number: int, values: tuple[int, ...] = (0, 1, 2)) -> Image.Image:
    """Return a mask with one of the values in each pixel, all of them in the first row."""
    rng = np.random.default_rng(number)
    pixels = rng.choice(np.array(values, dtype=np.uint8), (SIDE, SIDE))
    pixels[0, : len(values)] = values
    return Image.fromarray(pixels)


def make_folders(root: Path, values: tuple[int, ...] = (0, 1, 2), count: int = 10) -> tuple[str, str]:
    """Write images and masks of one stem; return both folders."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        draw(number).save(root / "images" / f"{number}.bmp")
        make_mask(number, values).save(root / "masks" / f"{number}.png")
    return str(root / "images"), str(root / "masks")


def test_each_pixel_has_the_class_of_its_mask(tmp_path: Path) -> None:
    data = segmentation(*make_folders(tmp_path), test_fraction=0.2)
    assert data.shape == Images(3, SIDE, SIDE, 3, per_pixel=True)
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)
    expected = {np.asarray(draw(n)).transpose(2, 0, 1).tobytes(): np.asarray(make_mask(n)).tolist() for n in range(10)}
    x, y = data.train[torch.arange(6)]
    assert y.dtype == torch.int64
    for pixels, classes in zip(x, y, strict=True):
        assert expected.pop(pixels.numpy().astype(np.uint8).tobytes()) == classes.tolist()
    counts = torch.bincount(data.train.targets.flatten().long())
    right = (data.val.targets == counts.argmax()).float().mean()
    assert data.baseline == {
        "val/acc majority": pytest.approx(float(right)),
        "val/iou majority": pytest.approx(float(right / 3)),
    }


def test_ignored_values_do_not_count_and_others_are_numbered(tmp_path: Path) -> None:
    data = segmentation(*make_folders(tmp_path, (0, 7, 255)))
    assert data.shape.num_classes == 2
    assert set(data.train.targets.unique().tolist()) == {IGNORE, 0, 1}
    sizes = [int((data.train.targets == number).sum()) for number in (0, 1)]
    every = torch.cat((data.train.targets, data.val.targets))
    assert data.notes == (
        "classes by the values of the masks: 1 value 7",
        f"pixels by value in training: {sizes[0]} of 0, {sizes[1]} of 7",
        f"{float((every == IGNORE).float().mean()):.2%} of the pixels have the value 255, and do not count (data.ignore)",
    )
    count = data.train.count_targets(torch.arange(8))
    assert int(count) == int((data.train.targets[:8] != IGNORE).sum()) < 8 * SIDE**2
    assert segmentation(str(tmp_path / "images"), str(tmp_path / "masks"), ignore=None).shape.num_classes == 3


def test_palettes_and_one_bit_are_class_numbers(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, (0, 1))
    for file in (tmp_path / "masks").iterdir():
        mask = make_mask(int(file.stem), (0, 1))
        if int(file.stem) % 2:
            mask.convert("L").point(lambda value: 255 * value).convert("1").save(file)
        else:
            mask.putpalette([10, 20, 30, 200, 100, 50])
            mask.save(file)
    data = segmentation(*folders)
    assert set(data.train.targets.unique().tolist()) == {0, 1}


def test_masks_are_resized_without_mixing_classes(tmp_path: Path) -> None:
    data = segmentation(*make_folders(tmp_path, (0, 200)), size=[9, 4])
    assert data.train.inputs.shape[1:] == (3, 9, 4)
    assert data.train.targets.shape[1:] == (9, 4)
    assert data.shape.num_classes == 2


def test_folders_that_are_splits_are_the_splits(tmp_path: Path) -> None:
    make_folders(tmp_path)
    for name, suffix in (("images", "bmp"), ("masks", "png")):
        for number in range(10):
            folder = tmp_path / name / ("val" if number < 3 else "train")
            folder.mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.{suffix}").rename(folder / f"{number}.{suffix}")
    data = segmentation(str(tmp_path / "images"), str(tmp_path / "masks"))
    assert (len(data.train), len(data.val)) == (7, 3)


def test_canvases_are_a_function_of_the_seed() -> None:
    data = segmentation(test_fraction=0.1)
    assert data.shape == Images(1, 32, 32, 11, per_pixel=True)
    assert data.digest == segmentation(test_fraction=0.1).digest != segmentation(test_fraction=0.1, split_seed=1).digest
    assert data.test is not None
    assert len(data.train) + len(data.val) + len(data.test) == pytest.approx(1500, abs=2)
    assert set(data.train.targets.unique().tolist()) == set(range(11))
    assert (data.train.inputs[:, 0][data.train.targets > 0] >= 64).all(), "a digit's pixels have its class"
    assert (data.train.inputs[:, 0][data.train.targets == 0] < 64).all()
    assert 0.85 < data.baseline["val/acc majority"] < 0.93
    assert segmentation(size=[24, 40]).shape[1:3] == (24, 40)


Make = Callable[[Path], object]
REFUSED: dict[str, tuple[Make, str]] = {
    "an image without a mask": (lambda root: save(root, "bad.png", draw(77), None), "1 images without a mask"),
    "a mask without an image": (lambda root: save(root, "bad.png", None, make_mask(77)), "1 masks without an image"),
    "a mask in colour": (lambda root: save(root, "bad.png", draw(77), draw(77)), "1 masks in colour"),
    "a mask of 16 bits": (
        lambda root: save(root, "bad.png", draw(77), Image.fromarray(np.full((SIDE, SIDE), 300, dtype=np.uint16))),
        "1 masks in colour or of 16 bits",
    ),
    "a mask of another size": (
        lambda root: save(root, "bad.png", draw(77), Image.new("L", (9, 9))),
        "1 masks of another size than their images",
    ),
    "a mask in JPEG": (lambda root: save(root, "bad.jpg", draw(77), make_mask(77)), "1 masks in JPEG, which changes class"),
    "a damaged mask": (
        lambda root: [save(root, "bad.png", draw(77), None), (root / "masks/bad.png").write_bytes(b"\x89PNG")],
        "1 files that are no images",
    ),
    "a damaged image": (
        lambda root: [save(root, "bad.png", None, make_mask(77)), (root / "images/bad.png").write_bytes(b"BM")],
        "1 files that are no images",
    ),
    "one stem twice": (
        lambda root: [save(root, "bad.png", draw(77), make_mask(77)), save(root, "bad.jpg", draw(78), None)],
        "2 images of one stem",
    ),
    "one image with two masks": (
        lambda root: [save(root, f"bad{number}.png", draw(77), make_mask(number)) for number in (77, 78)],
        "2 images with several masks",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_nasty_pair_is_refused_or_counted(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    folders = make_folders(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.images, data\.masks: ") as error:
        segmentation(*folders)
    assert words in str(error.value)
    assert "bad" in str(error.value), "the file is named"
    data = segmentation(*folders, defects="skip")
    assert len(data.train) + len(data.val) == 10
    assert words in "".join(data.notes)


def test_a_repeated_pair_is_counted(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    for name, suffix in (("images", "bmp"), ("masks", "png")):
        shutil.copy(tmp_path / name / f"0.{suffix}", tmp_path / name / f"again.{suffix}")
    data = segmentation(*folders)
    assert len(data.train) + len(data.val) == 10
    assert data.notes[1:] == ("left out: 1 repeated",)


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ((0, 255), {}, "data.ignore=255: the masks hold 0, 255, which leaves 1 class\ngive data.ignore=null"),
        ((3,), {}, "the masks hold 3"),
        ((0, 1), {"masks": None}, "data.images="),
        ((0, 1), {"masks": "nowhere"}, "data.masks: "),
        ((0, 1), {"size": 0}, "data.size=0"),
    ],
    ids=["0 and 255", "one value", "images alone", "no folder", "no size"],
)
def test_masks_that_cannot_be_used_are_refused(
    tmp_path: Path, values: tuple[int, ...], settings: dict[str, Any], words: str
) -> None:
    images, masks = make_folders(tmp_path, values)
    with pytest.raises(ValueError, match=r"^data\.") as error:
        segmentation(**{"images": images, "masks": masks} | settings)
    assert words in str(error.value)


SMOOTH: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blurred": lambda mask: mask.filter(ImageFilter.GaussianBlur(1)),
    "resized": lambda mask: mask.resize((32, 32), Image.Resampling.BILINEAR),
    "once a JPEG": lambda mask: Image.open(BytesIO(encode(mask))),
}


def encode(image: Image.Image) -> bytes:
    image.save(buffer := BytesIO(), "JPEG")
    return buffer.getvalue()


def test_points_are_classes(tmp_path: Path) -> None:
    """One pixel each: they have no area, and yet no shades."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        mask = Image.new("L", (SIDE, SIDE))
        for value in range(1, 6):
            mask.putpixel((value, (value + number) % SIDE), value)
        save(tmp_path, f"{number}.png", draw(number), mask)
    assert segmentation(str(tmp_path / "images"), str(tmp_path / "masks")).shape.num_classes == 6


@pytest.mark.parametrize("name", SMOOTH)
def test_masks_with_smooth_edges_are_refused(tmp_path: Path, name: str) -> None:
    """Else each shade between two classes is one more class."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(10):
        mask = Image.new("L", (64, 64))
        ImageDraw.Draw(mask).ellipse((number, 9, number + 30, 40), fill=255)
        save(tmp_path, f"{number}.png", draw(number).resize(SMOOTH[name](mask).size), SMOOTH[name](mask))
    with pytest.raises(ValueError, match=r"data\.masks: the masks hold \d+ values, \d+ of them at edges alone, as "):
        segmentation(str(tmp_path / "images"), str(tmp_path / "masks"), size=16)


def test_a_canvas_has_room_for_digits() -> None:
    with pytest.raises(ValueError, match="no room for two digits"):
        segmentation(size=12)


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        ({"images": "."}, "data.masks"),
        ({"masks": "."}, "data.images"),
        ({"channels": 1}, "data.images and data.masks"),
    ],
)
def test_settings_of_files_need_both_folders(settings: dict[str, Any], lacking: str) -> None:
    with pytest.raises(ValueError, match=rf"is of files, and needs {lacking}\ngive {lacking} too"):
        segmentation(**settings)
