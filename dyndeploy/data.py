"""Images as network inputs: files, folders, scikit-learn's digits and its two sample photographs.

Everything is read with Pillow into NumPy arrays; neither torch nor torchvision is needed. All inputs are
RGB, float32, channels first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.files import reason_of

if TYPE_CHECKING:
    from PIL.Image import Resampling

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.int64]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "MPO", "AVIF")
"""Pillow's names of the formats that are read; of some of them not every Pillow knows how."""

_LISTS = (".csv", ".tsv", ".json")
"""Endings of lists that lie beside images, whose absence from them surprises nobody."""

_NAMED = 5
"""So many files are named where many are meant."""

_DECODED_BYTES = 256 << 20
"""Images that are larger together are not decoded before they are trained on."""

_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
"""What stands at the end of a whole file."""

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by the value of EXIF's tag 274."""

_LOG = logging.getLogger("dyndeploy.data")

DIGITS = "digits"
"""Stands for scikit-learn's digits wherever a folder of images can be given."""

DIGITS_HELD_OUT = 0.2
"""Fraction of scikit-learn's 1797 digits that is never trained on."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
"""How an image can be resized; all but the first are antialiased."""


class PreprocessingLike(Protocol):
    """How an image becomes an input; see :class:`dyndeploy.nets.Preprocessing`.

    A bundle's :class:`dyndeploy.bundle.PreprocessingInfo` fits as well.
    """

    @property
    def resize(self) -> int:
        """Length of the shorter side after resizing, in pixels."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean per RGB channel, of values scaled to [0, 1]."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation per RGB channel, of values scaled to [0, 1]."""

    @property
    def interpolation(self) -> str:
        """One of "nearest", "bilinear", "bicubic", "lanczos"; all but the first are antialiased."""


class Policy(Protocol):
    """Variations of training images beyond crops and mirrors; the same seed gives the same ones."""

    def image(self, image: Image.Image, seed: int) -> Image.Image:
        """Vary an RGB image of the input's size."""

    def input(self, values: FloatArray, seed: int) -> FloatArray:
        """Vary a normalised input (3, h, w)."""


def normalise(pixels: ByteArray, preprocessing: PreprocessingLike) -> FloatArray:
    """Turn 8-bit RGB pixels into network inputs.

    Args:
        pixels: Shape (..., h, w, 3).
        preprocessing: Its mean and standard deviation are used.

    Returns:
        ``(pixels / 255 - mean) / std``, shape (..., 3, h, w), contiguous.
    """
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def load_image(path: str | os.PathLike[str], preprocessing: PreprocessingLike, size: tuple[int, int]) -> FloatArray:
    """Read an image file as one network input.

    EXIF orientation is applied, grey values are repeated, transparency is laid over white. The shorter side
    is resized to ``preprocessing.resize`` (further where the crop would not fit), the centre is cropped.

    Args:
        path: A file of one of :data:`FORMATS`.
        preprocessing: How to resize and normalise.
        size: (height, width) of the crop.

    Returns:
        Array of shape (3, height, width).

    Raises:
        InputError: The file is missing, or is no image that can be read to its end.
        UsageError: A size below 1, or an unknown interpolation.
    """
    image = _centre_crop(_read(Path(path)), preprocessing, size)
    return normalise(np.asarray(image), preprocessing)


def image_input(image: ByteArray | Image.Image, preprocessing: PreprocessingLike, size: tuple[int, int]) -> FloatArray:
    """Make one network input of an image in memory, as :func:`load_image` does of a file.

    Args:
        image: What :func:`rgb_pixels` takes.
        preprocessing: How to resize and normalise.
        size: (height, width) of the crop.

    Returns:
        Array of shape (3, height, width).

    Raises:
        UsageError: No such image, a size below 1, or an unknown interpolation.
    """
    cropped = _centre_crop(Image.fromarray(rgb_pixels(image)), preprocessing, size)
    return normalise(np.asarray(cropped), preprocessing)


def read_image(path: str | os.PathLike[str]) -> ByteArray:
    """Read an image file as 8-bit RGB pixels (height, width, 3), upright by its EXIF orientation.

    Grey values are repeated, transparency is laid over white.

    Args:
        path: A file of one of :data:`FORMATS`.

    Raises:
        InputError: The file is missing, or is no image that can be read to its end.
    """
    return np.asarray(_read(Path(path)))


def rgb_pixels(image: ByteArray | Image.Image) -> ByteArray:
    """Return an image in memory as 8-bit RGB pixels (height, width, 3), as :func:`read_image` does for files.

    Args:
        image: Pixels of 8 bits: RGB, RGB with transparency (height, width, 4), or grey, (height, width) or (height,
            width, 1); or an image of Pillow.

    Raises:
        UsageError: Anything else: values of another type, channels first, or no pixels at all.
    """
    if isinstance(image, Image.Image):
        return np.asarray(_to_rgb(_upright(image)))
    pixels = np.asarray(image)
    what = f"an array {pixels.shape} of {pixels.dtype}"
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
        advice = " Move the channels last: image.transpose(1, 2, 0)." if first else " Give one image at a time."
        raise UsageError(f"An image must have the shape (height, width, 3), not {what}.{advice}")
    if pixels.dtype != np.uint8:
        raise UsageError(f"An image must hold 8-bit values from 0 to 255 (uint8), not {what}. Scale and convert it.")
    if not pixels.size:
        raise UsageError(f"An image must have pixels, not {what}.")
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    return np.asarray(_to_rgb(Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)))


def images_from_folder(
    path: str | os.PathLike[str],
    preprocessing: PreprocessingLike,
    size: tuple[int, int],
    limit: int | None = None,
) -> FloatArray:
    """Read the images of a folder and of all folders in it.

    Args:
        path: The folder.
        preprocessing: How to resize and normalise.
        size: (height, width) of each input.
        limit: At most so many images, spread evenly over the sorted paths, so that a folder with one
            sub-folder per class yields images of all classes. None for all.

    Returns:
        Array of shape (n, 3, height, width), in the order of the sorted paths.

    Raises:
        InputError: The folder is missing or holds no image, or an image cannot be read; it is named.
        UsageError: A limit or a size below 1, or an unknown interpolation.
    """
    paths = image_paths(path)
    return np.stack([load_image(paths[index], preprocessing, size) for index in spread(len(paths), limit)])


def spread(total: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of ``total`` indices, evenly spread from the first on; all of them for None.

    Raises:
        UsageError: A limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} leaves no image: give at least 1.")
    count = total if limit is None else min(limit, total)
    return [index * total // count for index in range(count)]


def fingerprint(names: Iterable[str]) -> str:
    """Return a checksum of a list of names."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def image_paths(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the image files (:data:`FORMATS`, by their endings) in a folder and all folders in it, sorted.

    Links are followed, and hidden files and folders passed over. What is left out and may be an image is counted and
    named in the log ``dyndeploy.data``, which shows it on stderr unless it is told otherwise.

    Raises:
        InputError: The folder is missing, is no folder, or holds no image; or a folder in it cannot be looked into.
    """
    root = _folder(folder)
    found = _Listing(root)
    found.add(root)
    found.report()
    return found.images(root)


def with_folders(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield the files as they are given, and of every folder the images in it (:func:`image_paths`) in its place.

    Raises:
        InputError: A folder holds no image, or cannot be looked into.
    """
    for path in map(Path, paths):
        if path.is_dir():
            yield from image_paths(path)
        else:
            yield path


def damaged_images(paths: Sequence[Path], threads: int = 1) -> list[str]:
    """Look for image files that cannot be read, before hours are spent on those that come first.

    They are decoded where they are small together. Of many only the beginnings and ends are looked at, and what seems
    cut off is decoded.

    Args:
        paths: The files.
        threads: So many are looked at at a time.

    Returns:
        A sentence for each that fails.
    """
    decode, size = True, 0
    bad: list[str] = []
    with _quiet(), ThreadPoolExecutor(threads) as pool:
        # Not all at once: an interrupt waits for those that are handed out.
        for start in range(0, len(paths), 1024):
            some = paths[start : start + 1024]
            size += sum(pool.map(_size, some))
            decode = decode and size <= _DECODED_BYTES
            bad += filter(None, pool.map(functools.partial(_fault, decode=decode), some))
    return bad


def sample_photographs() -> tuple[Path, ...]:
    """Return the paths of the two photographs that scikit-learn ships: china.jpg and flower.jpg (640x427).

    Raises:
        InputError: The installed scikit-learn lacks them.
    """
    folder = resources.files("sklearn.datasets.images")
    paths = tuple(Path(str(folder / name)) for name in ("china.jpg", "flower.jpg"))
    for path in paths:
        if not path.is_file():
            raise InputError(f"The installed scikit-learn lacks {path}. Install scikit-learn again.")
    return paths


@dataclass(frozen=True)
class LabelledImages:
    """Images held in memory with the class of each.

    Attributes:
        images: Network inputs, shape (n, 3, h, w).
        labels: Class indices, shape (n,).
        classes: Name of each class.
    """

    images: FloatArray
    labels: LabelArray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return one image (3, h, w) and its class."""
        return self.images[index], int(self.labels[index])

    def fingerprint(self) -> str:
        """Return a checksum of the images and their classes."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Images to train on, and images that training never sees."""

    train: LabelledImages
    held_out: LabelledImages


def digits(preprocessing: PreprocessingLike, size: tuple[int, int], seed: int = 0) -> Split:
    """Return scikit-learn's handwritten digits (UCI, 1797 images of 8x8 pixels in 17 grey levels) as RGB inputs.

    They are scaled to 8 bits and resized bilinearly straight to ``size``; ``preprocessing.resize`` plays no
    part. Every class gives the same fraction (:data:`DIGITS_HELD_OUT`) to the held-out images.

    Args:
        preprocessing: Its mean and standard deviation are used.
        size: (height, width).
        seed: Decides which images are held out.

    Returns:
        1437 images to train on and 360 held out.

    Raises:
        UsageError: A size below 1.
    """
    height, width = _checked_size(size)
    source = digit_pixels(seed)
    resized = np.stack(
        [np.asarray(Image.fromarray(g).resize((width, height), Image.Resampling.BILINEAR)) for g in source.pixels]
    )
    images = normalise(np.repeat(resized[..., None], 3, axis=-1), preprocessing)
    train, held_out = source.train, source.held_out
    return Split(
        LabelledImages(images[train], source.labels[train], source.classes),
        LabelledImages(images[held_out], source.labels[held_out], source.classes),
    )


@dataclass(frozen=True)
class DigitPixels:
    """Scikit-learn's digits as they are.

    Attributes:
        pixels: Shape (1797, 8, 8), uint8; 255 is ink.
        labels: Class indices, shape (1797,).
        train: Indices of those to train on.
        held_out: Indices of those that training never sees.
        classes: Name of each class.
    """

    pixels: ByteArray
    labels: LabelArray
    train: LabelArray
    held_out: LabelArray
    classes: tuple[str, ...]


def digit_pixels(seed: int = 0) -> DigitPixels:
    """Return scikit-learn's digits in 8 bits, split as :func:`digits` says.

    Args:
        seed: Decides which digits are held out.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    labels = source.target.astype(np.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_HELD_OUT, stratify=labels, random_state=seed
    )
    classes = tuple(str(name) for name in source.target_names)
    return DigitPixels(np.round(source.images * (255 / 16)).astype(np.uint8), labels, train, held_out, classes)


class ShiftedImages:
    """Images held in memory, each moved by a few pixels at random when it is read.

    A map-style dataset for ``torch.utils.data.DataLoader``. What comes in from outside repeats the border.

    Args:
        source: The images.
        distance: Largest shift in each direction, in pixels.
        seed: Seed of the shifts, which depend on this seed, the epoch and the index only.

    Raises:
        UsageError: A negative distance.
    """

    def __init__(self, source: LabelledImages, distance: int, seed: int = 0) -> None:
        if distance < 0:
            raise UsageError(f"A shift of {distance} pixels is not valid: give at least 0.")
        self.source = source
        self.classes = source.classes
        self.distance = distance
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose shifts the next items get."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return one shifted image (3, h, w) and its class index."""
        image, label = self.source[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        down, right = rng.integers(-self.distance, self.distance + 1, 2)
        rows = np.clip(np.arange(image.shape[1]) - down, 0, image.shape[1] - 1)
        columns = np.clip(np.arange(image.shape[2]) - right, 0, image.shape[2] - 1)
        return image[:, rows[:, None], columns], label


class ImageFolderDataset:
    """A folder with one sub-folder of images per class, read from disk when needed.

    A map-style dataset for ``torch.utils.data.DataLoader``: an item is an input (3, h, w) and a class index.
    Classes are the sorted names of the sub-folders.

    Args:
        path: The folder.
        preprocessing: How to resize and normalise.
        size: (height, width) of each input.
        augment: Take a random crop (8-100 % of the area, aspect ratio 3/4 to 4/3) and mirror every second
            image instead of cropping the centre: the augmentation of the LAUDNet reference code.
        seed: Seed of the augmentation, which depends on this seed, the epoch and the index only. It is the
            same whatever the order of access and the number of loader processes.
        policy: Varies cropped images and finished inputs further; only with ``augment``.
        classes: The sub-folders to use, in order of class index; None for all of them, sorted. Give the
            training set's classes to the validation set, so that both number them alike.

    Raises:
        InputError: The folder is missing or has no sub-folders, or a class has no images.
        UsageError: A size below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocessing: PreprocessingLike,
        size: tuple[int, int],
        *,
        augment: bool = False,
        seed: int = 0,
        policy: Policy | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = _folder(path)
        listing = _Listing(root)
        present = [entry.name for entry in listing.entries(root) if listing.is_folder(entry)]
        if not present:
            raise InputError(f"{root} has no sub-folders. Give a folder with one sub-folder of images per class.")
        if classes is not None and set(present) != set(classes):
            extra, absent = sorted(set(present) - set(classes)), sorted(set(classes) - set(present))
            raise InputError(
                f"The classes of {root} differ from those trained on: "
                f"missing {', '.join(absent) or 'none'}; unknown {', '.join(extra) or 'none'}."
            )
        self.classes = tuple(present if classes is None else classes)
        self.preprocessing = preprocessing
        self.size = _checked_size(size)
        self.augment = augment
        self.seed = seed
        self.policy = policy
        self.epoch = 0
        self.samples: list[tuple[Path, int]] = []
        for index, name in enumerate(self.classes):
            listing.add(root / name)
            self.samples += [(image, index) for image in listing.images(root / name)]
        listing.report()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next items get."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def fingerprint(self) -> str:
        """Return a checksum of the list of images with their classes; the files are not read for it."""
        return fingerprint(f"{label}\t{path}" for path, label in self.samples)

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return one input (3, h, w) and its class index.

        Raises:
            InputError: The file cannot be read; it is named.
        """
        path, label = self.samples[index]
        if not self.augment:
            return load_image(path, self.preprocessing, self.size), label
        rng = np.random.default_rng((self.seed, self.epoch, index))
        image = _random_crop(_read(path), self.preprocessing, self.size, rng)
        if self.policy is None:
            return normalise(np.asarray(image), self.preprocessing), label
        seeds = rng.integers(2**63, size=2).tolist()
        values = normalise(np.asarray(self.policy.image(image, seeds[0])), self.preprocessing)
        return self.policy.input(values, seeds[1]), label


def images_of_classes(
    data: str | os.PathLike[str],
    preprocessing: PreprocessingLike,
    size: tuple[int, int],
    *,
    names: Sequence[str],
    count: int | None,
) -> LabelledImages | ImageFolderDataset:
    """Open images whose labels are a network's own class indices, as whatever measures accuracy needs them.

    Of a bundle, with ``network = bundle.manifest.network``::

        preprocessing, size = bundle.manifest.images()
        dataset = images_of_classes(
            data, preprocessing, size, names=network.class_names, count=network.num_classes
        )
        image, label = dataset[0]  # (3, h, w), and the index of its logit

    Sub-folders are matched to the classes by name. Where the network does not know the names of its classes, the
    sub-folders must be as many as the classes, are taken in the order of their sorted names, and a note in the log
    ``dyndeploy.data`` says so.

    Args:
        data: A folder with one sub-folder of images per class, or :data:`DIGITS` for the held-out digits.
        preprocessing: How to resize and normalise.
        size: (height, width) of each input.
        names: Names of the network's classes in the order of its logits; empty where they are not known.
        count: Number of the network's classes; None where it gives no logits.

    Raises:
        InputError: The folder is missing or empty, or its sub-folders are not the network's classes.
    """
    dataset: LabelledImages | ImageFolderDataset
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise InputError(
            f"The network has several classes named {_few(repeated)}: their folders cannot be told apart. Export it "
            "with names that differ (--class-names)."
        )
    if os.fspath(data) == DIGITS:
        dataset, source = digits(preprocessing, size).held_out, "scikit-learn's digits"
        if names and set(names) == set(dataset.classes):
            order = np.array([list(names).index(name) for name in dataset.classes], np.int64)
            return LabelledImages(dataset.images, order[dataset.labels], tuple(names))
    else:
        dataset, source = ImageFolderDataset(data, preprocessing, size), os.fspath(data)
        if names and set(names) == set(dataset.classes):
            return ImageFolderDataset(data, preprocessing, size, classes=names)
    if names:
        meant = next((part for part in ("val", "test") if part in dataset.classes and part not in names), None)
        hint = "" if meant is None else f" Did you mean {Path(source) / meant}?"
        raise InputError(_other_classes(source, dataset.classes, names) + hint)
    if len(dataset.classes) != count:
        raise InputError(
            f"{source} has {len(dataset.classes)} classes ({_few(dataset.classes)}), the network {count}. Give a "
            "folder with one sub-folder per class, named as those of the training images, such as DATA/val."
        )
    if isinstance(dataset, ImageFolderDataset):
        _LOG.warning(
            "Note: The network does not know the names of its classes: the sub-folders of %s are taken as classes 0 to "
            "%d in the order of their names.",
            source,
            len(dataset.classes) - 1,
        )
    return dataset


def _other_classes(source: str, present: Sequence[str], names: Sequence[str]) -> str:
    """Say how the sub-folders of a folder are not a network's classes."""
    extra, absent = [n for n in present if n not in set(names)], [n for n in names if n not in set(present)]
    found = "; ".join(
        f"{word} {_few(some)}" for word, some in (("missing", absent), ("unknown to the network", extra)) if some
    )
    return (
        f"The sub-folders of {source} are not the network's classes: {found}. Name them as the network's "
        f"{len(names)} classes. A bundle exported without class names takes them in sorted order instead."
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _folder(path: str | os.PathLike[str]) -> Path:
    root = Path(path)
    try:
        kind = root.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"There is no folder {root}. Give an existing folder with images.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot look at the folder {root}: {reason_of(error)}.") from error
    if not stat.S_ISDIR(kind):
        raise InputError(f"{root} is not a folder. Give the folder that holds the images.")
    return root


@functools.cache
def extensions() -> tuple[str, ...]:
    """Endings of the files that count as images, in lower case: those of :data:`FORMATS`, as far as Pillow has them."""
    known = Image.registered_extensions()
    return tuple(sorted(ending for ending, name in known.items() if name in FORMATS))


class _Listing:
    """The images of a folder, and what of it is left out.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: list[Path] = []
        self._left_out: list[str] = []
        real = root.resolve()
        self._above = frozenset(_identity(os.stat(folder)) for folder in (real, *real.parents))

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What a folder holds, by name, hidden things excepted; raises ``InputError`` if it cannot be looked into."""
        try:
            with os.scandir(folder) as found:
                return sorted((entry for entry in found if not self._hidden(entry)), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"Cannot look into the folder {folder}: {reason_of(error)}. Make it readable, or leave it out."
            ) from error

    def _hidden(self, entry: os.DirEntry[str]) -> bool:
        hidden = entry.name.startswith(".")
        if hidden and entry.name.lower().endswith(extensions()):
            self._leave(entry, "hidden")
        return hidden

    def is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder or leads to one; leaves out what is neither."""
        kind = self._kind(entry, self._above)
        if kind not in (None, stat.S_IFDIR):
            self._leave(entry, "lies beside the classes" if entry.name.lower().endswith(extensions()) else "")
        return kind == stat.S_IFDIR

    def add(self, folder: Path) -> None:
        """List the images of a folder and of all folders in it."""
        self._add(folder, self._above)

    def images(self, folder: Path) -> tuple[Path, ...]:
        """The images listed so far that lie in a folder, sorted; raises ``InputError`` if there are none."""
        paths = tuple(sorted(self._found, key=lambda path: path.relative_to(folder).parts))
        self._found = []
        if not paths:
            raise InputError(
                f"{folder} holds no images ({', '.join(extensions())}). Give a folder with images in it.{self._named()}"
            )
        return paths

    def report(self) -> None:
        """Log what was left out."""
        if self._left_out:
            _LOG.warning("Note: %s is read without some of what it holds.%s", self._root, self._named())

    def _named(self) -> str:
        count = len(self._left_out)
        if not count:
            return ""
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        return f" Left out: {count} ({', '.join(self._left_out[:_NAMED])}{more})."

    def _add(self, folder: Path, above: frozenset[tuple[int, int]]) -> None:
        above |= {_identity(os.stat(folder))}
        for entry in self.entries(folder):
            kind = self._kind(entry, above)
            if kind == stat.S_IFDIR:
                self._add(Path(entry), above)
            elif kind is not None:
                if not entry.name.lower().endswith(extensions()):
                    self._leave(entry, "")
                elif kind != stat.S_IFREG:
                    self._leave(entry, "is no file")
                else:
                    self._found.append(Path(entry))

    def _kind(self, entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> int | None:
        """The type of what an entry is or leads to; None where it leads nowhere or in a circle, and is left out."""
        try:
            # Only links cost a call of the system.
            if entry.is_file():
                return stat.S_IFREG
            found = entry.stat()
        except PermissionError as error:
            raise InputError(
                f"Cannot look at {entry.path}: {reason_of(error)}. Make it readable, or leave it out."
            ) from error
        except OSError as error:
            self._leave(entry, "leads nowhere" if isinstance(error, FileNotFoundError) else reason_of(error))
            return None
        if stat.S_ISDIR(found.st_mode) and _identity(found) in above:
            self._leave(entry, "leads to a folder that it lies in")
            return None
        return stat.S_IFMT(found.st_mode)

    def _leave(self, entry: os.DirEntry[str], why: str) -> None:
        if why or not entry.name.lower().endswith(_LISTS):
            name = os.path.relpath(entry.path, self._root)
            self._left_out.append(f"{name}: {why}" if why else name)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _fault(path: Path, *, decode: bool) -> str:
    """Why an image cannot be read; "" where it can, as far as is seen without decoding it if that is not asked for."""
    try:
        if decode or not _seems_whole(path):
            _decode(path)
    except InputError as error:
        return str(error)
    return ""


def _seems_whole(path: Path) -> bool:
    with _reading(path), path.open("rb") as file, Image.open(file, formats=_formats()) as image:
        end = _ENDS.get(image.format or "")
        file.seek(-min(_size(path), 64), os.SEEK_END)
        return end is not None and end in file.read()


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if min(height, width) < 1:
        raise UsageError(f"Image size {height}x{width} is not valid: give a height and a width of at least 1.")
    return height, width


def _resampling(name: str) -> Resampling:
    if name not in INTERPOLATIONS:
        raise unknown_name("interpolation", name, INTERPOLATIONS)
    return Image.Resampling[name.upper()]


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings: large photographs and odd notes in files are what users have.

    Absurd sizes still are errors. Not for threads, which share the filters of warnings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report what Pillow raises while it reads a file as ``InputError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"There is no image {path}.") from error
    except UnidentifiedImageError as error:
        known = ", ".join(_formats())
        raise InputError(f"{path} is not an image that can be read. Give one of the formats {known}.") from error
    except Exception as error:
        # Damaged files make Pillow's decoders raise whatever they stumble over.
        damaged = not (isinstance(error, OSError) and error.errno)
        advice = " The file may be damaged." if damaged else ""
        raise InputError(f"Cannot read the image {path}: {reason_of(error)}.{advice}") from error


def _read(path: Path) -> Image.Image:
    """Decode a file completely into an RGB image; raises ``InputError``."""
    with _quiet():
        return _decode(path)


def _decode(path: Path) -> Image.Image:
    with _reading(path), Image.open(path, formats=_formats()) as image:
        image.load()
        return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(274)
    except Exception:
        # What cameras and editors leave there may be broken in any way, and says nothing about the pixels.
        return image
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greys: Pillow's own conversion to 8 bits clips instead of scaling.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _centre_crop(image: Image.Image, preprocessing: PreprocessingLike, size: tuple[int, int]) -> Image.Image:
    height, width = _checked_size(size)
    short = max(preprocessing.resize, math.ceil(min(image.size) * max(height / image.height, width / image.width)))
    # The longer side is rounded down and the crop's corner to the nearest, as torchvision does: checkpoints
    # were trained and scored that way.
    scaled = [max(short * side // min(image.size), short) for side in image.size]
    scaled = [max(side, least) for side, least in zip(scaled, (width, height), strict=True)]
    # Along the rows, then along the columns: Pillow 13 chooses the order itself, which changes how pixels are rounded.
    # A bundle's images must become the same inputs with every Pillow, and on boards without one.
    method = _resampling(preprocessing.interpolation)
    image = image.resize((scaled[0], image.height), method).resize((scaled[0], scaled[1]), method)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _random_crop(
    image: Image.Image, preprocessing: PreprocessingLike, size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    height, width = size
    area = image.width * image.height
    for _ in range(10):
        target = area * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_width <= image.width and 0 < crop_height <= image.height:
            break
    else:
        # So long and thin that no crop fitted: the largest one of an allowed aspect ratio.
        aspect = min(max(image.width / image.height, 3 / 4), 4 / 3)
        crop_width = min(image.width, max(1, round(image.height * aspect)))
        crop_height = min(image.height, max(1, round(image.width / aspect)))
    left = int(rng.integers(image.width - crop_width + 1))
    top = int(rng.integers(image.height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    image = image.resize((width, height), _resampling(preprocessing.interpolation), box=box)
    return ImageOps.mirror(image) if rng.integers(2) else image
