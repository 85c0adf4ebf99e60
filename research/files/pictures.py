"""Pictures of files as numbers of 0 to 255. What is treated is counted; what cannot be read is a Defect."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from research.contracts import contract
from research.files.lines import Defect
from research.files.sources import IMAGE_KINDS, Counts, build_filter, describe_kind, iter_files

MAX_PIXELS = 1 << 26  # of one file
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")
Pixels = UInt8[np.ndarray, "height width *channels"]
Size = tuple[int, int]  # height, width
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """A picture within a file that holds many."""

    name: str  # for messages
    file: Path
    start: int
    size: int

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """Return the content."""
        with self.file.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), self.size, self.start)


Origin = Path | Part


class Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    size: Size  # as it is seen: turned as its EXIF says
    is_grey: bool


@dataclass(frozen=True)
class Picture:
    """One picture, decoded."""

    pixels: Pixels
    digest: bytes  # of the pixels
    key: bytes  # of the file: libraries may decode to other pixels
    treatments: tuple[str, ...] = ()  # for counts
    areas: Int64[np.ndarray, "2 256"] | None = None  # of a mask before it is resized


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, in the order of their files."""

    pixels: UInt8[np.ndarray, "n channels height width"]
    digests: list[bytes]
    keys: list[bytes]
    numbers: list[int]  # of the files that could be read
    sizes: list[Size]  # before they were resized


@contract
def list_pictures(root: Path, pattern: str | None, counts: Counts) -> list[Path]:
    """Return the pictures below a folder, sorted by name; what is of another kind, and hidden files, are counted."""
    files, is_wanted = [], build_filter(pattern, IMAGE_KINDS)
    for path in iter_files(root, counts):
        if is_hidden(path.relative_to(root).parts) or path.name in ("Thumbs.db", "desktop.ini"):
            counts.add("hidden files", str(path))
        elif is_wanted(path):
            files.append(path)
        else:
            counts.add(describe_kind(path), str(path))
    return sorted(files)


@contract
def is_hidden(parts: Sequence[str]) -> bool:
    """Return whether a path below a folder is hidden, by its name or a folder's."""
    return any(part.startswith(".") for part in parts)


@contextmanager
def open_picture(content: Path | BytesIO, where: Origin) -> Iterator[Image.Image]:
    """Yield a picture that is not yet decoded. Raise PictureError for a file that is none, or one that is damaged."""
    try:
        with Image.open(content) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"images of over {MAX_PIXELS / 1e6:.0f} megapixels", where)
            yield image
    except (PictureError, PermissionError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PictureError(f"images of over {MAX_PIXELS / 1e6:.0f} megapixels", where) from None
    except UnidentifiedImageError:
        is_empty = not (content.getbuffer().nbytes if isinstance(content, BytesIO) else content.stat().st_size)
        raise PictureError("empty files" if is_empty else "files that are no images", where) from None
    except Exception:  # damaged files: Pillow's readers raise errors of many kinds
        raise PictureError("damaged images", where) from None


class PictureError(Exception):
    """A file holds no picture that can be used."""

    def __init__(self, kind: str, where: Origin | str) -> None:
        super().__init__(f"{where}: {kind}")
        self.defect = Defect(kind, str(where))


def read_header(path: Origin) -> Header:
    """Return size and kind of a picture, without its pixels."""
    with open_picture(path if isinstance(path, Path) else BytesIO(path.read_bytes()), path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return Header((image.width, image.height) if turned else (image.height, image.width), image.mode in GREY_MODES)


def read_picture(path: Origin, size: Size | None, channels: int) -> Picture:
    """Return the pixels of a file with 1 or 3 channels, resized where a size is given."""
    content = path.read_bytes()
    with open_picture(BytesIO(content), path) as image:
        treatments = describe_treatments(image, channels)
        plain = flatten_colours(ImageOps.exif_transpose(image), path)
        if size and plain.size != size[::-1]:
            treatments += ["resized"] + ["stretched"] * (plain.width * size[0] != plain.height * size[1])
            plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
        plain = plain.convert("L" if channels == 1 else "RGB")
        return Picture(np.asarray(plain), sha256(plain.tobytes()).digest(), sha256(content).digest(), tuple(treatments))


def read_mask(path: Path, image_size: Size, size: Size | None) -> Picture:
    """Return the class numbers of a mask, palette or grey, resized without mixing them.

    Raise PictureError for one in colour, one in JPEG, and one of another size than its image.
    """
    content = path.read_bytes()
    with open_picture(BytesIO(content), path) as image:
        if image.mode not in ("1", "L", "P"):
            raise PictureError("masks in colour or of 16 bits (give palette or grey images of class numbers)", path)
        if image.format in ("JPEG", "MPO"):
            raise PictureError("masks in JPEG, which changes class numbers (give PNG, made anew)", path)
        values = np.asarray(image, dtype=np.uint8)
        if values.shape != image_size:
            sides = f"{values.shape[0]} x {values.shape[1]} for {image_size[0]} x {image_size[1]}"
            raise PictureError("masks of another size than their images", f"{path} ({sides})")
        areas = count_areas(values)
        if size and values.shape != size:
            values = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
        return Picture(values, sha256(values.tobytes()).digest(), sha256(content).digest(), areas=areas)


def count_areas(mask: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "2 256"]:
    """Return how many pixels have each value, and how many of them begin a square of 2 x 2 that has it, too."""
    corner = mask[:-1, :-1]
    is_even = (corner == mask[1:, :-1]) & (corner == mask[:-1, 1:]) & (corner == mask[1:, 1:])
    return np.stack([np.bincount(pixels, minlength=256) for pixels in (mask.ravel(), corner[is_even])])


def describe_treatments(image: Image.Image, channels: int) -> list[str]:
    """Return what is done to a picture of an unusual kind."""
    kinds = {
        "reduced from 16 bits": ";16" in repr(getattr(image, "tile", "")),  # asked first: EXIF of PNG decodes the pixels
        "of several frames (the first is read)": getattr(image, "n_frames", 1) > 1,
        "turned as EXIF says": image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1),
        "converted from CMYK": image.mode == "CMYK",
        "converted from a palette": image.mode in ("P", "PA"),
        "grey, as colours": channels == 3 and image.mode in GREY_MODES,
        "transparent, laid on white": image.has_transparency_data and has_transparent_pixels(image),
    }
    return [kind for kind, applies in kinds.items() if applies]


def has_transparent_pixels(image: Image.Image) -> bool:
    """Return whether a picture that may be transparent is so anywhere."""
    return min(image.convert("RGBA").getchannel("A").tobytes()) < 255


def flatten_colours(image: Image.Image, where: Origin) -> Image.Image:
    """Return a picture in grey or in colour, of 8 bits, without transparency. Raise PictureError for 32 bits."""
    if image.mode in ("I", "F"):
        raise PictureError("images of 32-bit numbers, whose range is not known", where)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    kind = "L" if image.mode in GREY_MODES else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(kind)


@contract
def map_files(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | Defect]:
    """Return a result or a defect for each item, in their order. Threads: decoding releases the interpreter."""

    def guard(item: Item) -> Result | Defect:
        try:
            return function(item)
        except PictureError as error:
            return error.defect
        except PermissionError as error:
            return Defect("files without permission", str(error.filename))
        except OSError as error:
            return Defect(f"files with errors ({error.strerror})", str(error.filename))

    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return list(pool.map(guard, items))


def decode_pictures(
    files: Sequence[Origin], size: Size | None, channels: Literal[1, 3] | None, max_gb: float, treated: Counts, defects: Counts
) -> Pictures:
    """Return the pixels of all files that can be read; the rest is counted in `defects`, what is changed in `treated`.

    None for `size`: that of all files. None for `channels`: 1 where all are grey, else 3.
    Raise ValueError for files of several sizes, and where they would take more than `max_gb` of memory.
    """
    headers = map_files(read_header, files)
    numbers = select_good(headers, defects)
    good = [header for header in headers if isinstance(header, Header)]
    if not good:
        return Pictures(np.empty((0, channels or 1, *(size or (1, 1))), dtype=np.uint8), [], [], [], [])
    channels = channels or (1 if all(header.is_grey for header in good) else 3)
    if size is None:
        other = next((i for i, header in enumerate(good) if header.size != good[0].size), None)
        if other is not None:
            pair = " and ".join(f"{files[numbers[i]]} has {good[i].size[0]} x {good[i].size[1]}" for i in (0, other))
            raise ValueError(f"data.size=null: images have several sizes: {pair}\ngive data.size=PIXELS or [HEIGHT,WIDTH]")
    shape = (len(good), channels, *(size or good[0].size))
    if (needed := float(np.prod(shape, dtype=float)) / 1e9) > max_gb:
        text = f"{shape[0]:,} images of {' x '.join(map(str, shape[1:]))} take {needed:.3g} GB of memory"
        raise ValueError(f"data.max_gb={max_gb:g}: {text}\ngive a smaller data.size, or a larger data.max_gb")
    pixels = np.empty(shape, dtype=np.uint8)

    def decode(row: int) -> Picture:
        path = files[numbers[row]]
        picture = read_picture(path, size, channels)
        if picture.pixels.shape[:2] != shape[2:]:
            raise PictureError("files that change while they are read", path)
        pixels[row] = picture.pixels if channels == 1 else picture.pixels.transpose(2, 0, 1)
        return Picture(picture.pixels[:0], picture.digest, picture.key, picture.treatments)

    decoded = map_files(decode, range(len(good)))
    rows = select_good(decoded, defects)
    pictures = [picture for picture in decoded if isinstance(picture, Picture)]
    for row, picture in zip(rows, pictures, strict=True):
        for treatment in picture.treatments:
            treated.add(treatment, str(files[numbers[row]]))
    return Pictures(
        pixels if len(rows) == len(good) else pixels[rows],
        [picture.digest for picture in pictures],
        [picture.key for picture in pictures],
        [numbers[row] for row in rows],
        [good[row].size for row in rows],
    )


@contract
def select_good(results: Sequence[object], defects: Counts) -> list[int]:
    """Return the numbers of the results that are no defects, and count those that are."""
    for result in results:
        if isinstance(result, Defect):
            defects.add(result.kind, result.where)
    return [number for number, result in enumerate(results) if not isinstance(result, Defect)]


@contract
def parse_size(size: int | Sequence[int] | None) -> Size | None:
    """Return height and width. Raise ValueError for what is neither a number nor two."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise ValueError(f"data.size={size}: it takes a number of pixels, or [HEIGHT,WIDTH]\ngive one as data.size=64")
    return pair
