"""A hundred image files such as users have: every kind of PNG and JPEG, odd sizes, EXIF, transparency."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]

SIZES = ((1, 1), (1, 300), (300, 1), (2, 3), (16, 16), (17, 31), (64, 64), (223, 225), (480, 640), (900, 1300))
"""Height and width."""


def write_odd_images(folder: Path) -> list[Path]:
    """Write the files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [*_jpegs(folder), *_pngs(folder), *_raw_pngs(folder)]


def _picture(height: int, width: int, channels: int, seed: int) -> Bytes:
    """Smooth shapes with noise, so that both filters and decoders have something to round."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / generator.uniform(3, 40) + y / generator.uniform(3, 40)) for _ in range(channels)]
    noise = generator.normal(0, 12, (height, width, channels))
    return (np.stack(waves, -1) * 90 + 128 + noise).clip(0, 255).astype(np.uint8)


def _jpegs(folder: Path) -> Iterator[Path]:
    for index, ((height, width), subsampling) in enumerate(itertools.product(SIZES, (0, 1, 2))):
        path = folder / f"rgb_{height}x{width}_{subsampling}.jpg"
        image = Image.fromarray(_picture(height, width, 3, index))
        image.save(path, quality=60 + index, subsampling=subsampling, progressive=index % 2 == 1)
        yield path
    for orientation in range(1, 9):
        path = folder / f"orientation_{orientation}.jpg"
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(_picture(40, 65, 3, orientation)).save(path, exif=exif, quality=92)
        yield path
    for index, mode in enumerate(("L", "CMYK")):
        path = folder / f"mode_{mode}.jpg"
        channels = {"L": 1, "CMYK": 4}[mode]
        picture = _picture(70, 51, channels, 70 + index)
        Image.fromarray(picture.squeeze(), mode=mode).save(path, quality=90)
        yield path
    path = folder / "broken_exif.jpg"
    Image.fromarray(_picture(20, 30, 3, 5)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    yield path
    path = folder / "restarts.jpg"
    Image.fromarray(_picture(90, 100, 3, 6)).save(path, quality=75, restart_marker_rows=1)
    yield path


def _pngs(folder: Path) -> Iterator[Path]:
    modes = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
    for index, ((height, width), mode) in enumerate(itertools.product(SIZES[:8], modes)):
        picture = _picture(height, width, modes[mode], 100 + index).squeeze(-1 if modes[mode] == 1 else ())
        image = Image.fromarray(picture).convert("1") if mode == "1" else Image.fromarray(picture, mode=mode)
        path = folder / f"{mode}_{height}x{width}.png"
        image.save(path)
        yield path
    picture = _picture(33, 47, 3, 9)
    palette = Image.fromarray(picture).quantize(37)
    yield _saved(palette, folder / "palette.png")
    yield _saved(palette, folder / "palette_clear.png", transparency=5)
    yield _saved(palette, folder / "palette_alpha.png", transparency=bytes(range(0, 185, 5)))
    yield _saved(Image.fromarray(picture).quantize(2), folder / "palette_1bit.png", bits=1)
    yield _saved(Image.fromarray(picture), folder / "rgb_clear.png", transparency=tuple(picture[3, 4].tolist()))
    yield _saved(Image.fromarray(picture[..., 0]), folder / "grey_clear.png", transparency=int(picture[2, 2, 0]))
    deep = np.random.default_rng(4).integers(0, 65536, (41, 29), np.uint16)
    yield _saved(Image.fromarray(deep), folder / "grey16.png")
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[274] = orientation
        yield _saved(Image.fromarray(picture), folder / f"orientation_{orientation}.png", exif=exif)


def _saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def _raw_pngs(folder: Path) -> Iterator[Path]:
    """Kinds that Pillow reads and does not write: 2 and 4 bits, 16 bits of every colour, interlaced files."""
    generator = np.random.default_rng(8)
    for depth, color, channels in ((2, 0, 1), (4, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4)):
        path = folder / f"raw_{depth}_{color}.png"
        row_bytes = (23 * depth * channels + 7) // 8
        rows = generator.integers(0, 256, (19, row_bytes), np.uint8)
        path.write_bytes(_png(23, 19, depth, color, 0, b"".join(b"\0" + row.tobytes() for row in rows)))
        yield path
    for color, channels in ((0, 1), (2, 3), (6, 4)):
        path = folder / f"interlaced_{color}.png"
        path.write_bytes(_png(13, 11, 8, color, 1, _interlaced(_picture(11, 13, channels, color))))
        yield path
    path = folder / "rgb16_clear.png"
    pixels = generator.integers(0, 65536, (5, 6, 3), np.uint16)
    pixels[..., 1:] &= 0x00FF
    pixels[0, 0] = (0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(_png(6, 5, 16, 2, 0, rows, [(b"tRNS", struct.pack(">HHH", 0, 0, 0))]))
    yield path
    for depth, clear in ((1, 1), (2, 3), (4, 9)):
        path = folder / f"grey{depth}_clear.png"
        rows = b"".join(b"\0" + row.tobytes() for row in generator.integers(0, 256, (9, depth * 2), np.uint8))
        path.write_bytes(_png(16, 9, depth, 0, 0, rows, [(b"tRNS", struct.pack(">H", clear))]))
        yield path


def _interlaced(picture: Bytes) -> bytes:
    """The seven passes of Adam7."""
    out = b""
    for top, left, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
    ):  # fmt: skip
        some = picture[top::down, left::right]
        if some.size:
            out += b"".join(b"\0" + row.tobytes() for row in some)
    return out


def _png(
    width: int,
    height: int,
    depth: int,
    color: int,
    interlace: int,
    rows: bytes,
    chunks: list[tuple[bytes, bytes]] | None = None,
) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    parts = [(b"IHDR", header), *(chunks or []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
