"""Image files decoded into uint8 tensors."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from data.raw_files import RawFile, RawImages, raw_file, reason, signature_of
from data.tables import Table
from utils.errors import UserError

# Other decoders of Pillow stay out of reach; some start other programs, such as Ghostscript for EPS.
FORMATS = ("PNG", "JPEG")
# A small file can declare an image that does not fit into the memory.
MAX_PIXELS = 1 << 26
# A collection may pad its images to squares.
MAX_SIDE = 1 << 14


def raw_images(
    files: Sequence[RawFile],
    *,
    table: Table,
    signature: str,
    prepare: Callable[[Any], Any] | None = None,
) -> RawImages:
    """The raw images in `files`, to be decoded to the table's size and channels. See `decode_files`."""
    return RawImages(
        signature, partial(decode_files, files, size=table.size, channels=table.channels, prepare=prepare)
    )


def raw_images_at(
    paths: Sequence[Path],
    labels: Sequence[int],
    *,
    table: Table,
    prepare: Callable[[Any], Any] | None = None,
) -> RawImages:
    """The raw images at `paths`, which are out of date once a file's name, size or time changes."""
    files = [raw_file(path, label) for path, label in zip(paths, labels, strict=True)]
    signature = signature_of(paths, None, labels)
    return raw_images(files, table=table, signature=signature, prepare=prepare)


def decode_files(
    files: Sequence[RawFile], *, size: int, channels: int, prepare: Callable[[Any], Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Decode `files` in order, using a few threads.

    Args:
        prepare: applied to every Pillow image before it is resized.

    Returns:
        Images uint8 (N, channels, size, size) and labels int64 (N,).

    Raises:
        UserError: naming the first file that is not a complete image.
    """
    from PIL import Image

    pixels = numpy.empty((len(files), size, size, channels), dtype=numpy.uint8)

    def decode_some(start: int) -> None:
        for index in range(start, min(start + 64, len(files))):
            file = files[index]
            pixels[index] = decode_image(
                file.read(), name=file.name, size=size, channels=channels, prepare=prepare
            )

    with (
        # Pillow's own limit is higher, and only a warning.
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
        ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool,
    ):
        # `list` re-raises a thread's exception here, that of the earliest file first.
        list(pool.map(decode_some, range(0, len(files), 64)))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([file.label for file in files], dtype=torch.int64)


def decode_image(
    content: bytes,
    *,
    name: str,
    size: int,
    channels: int,
    prepare: Callable[[Any], Any] | None = None,
) -> numpy.ndarray:
    """Decode one image file to uint8 (size, size, channels).

    PNG and JPEG are read. Grey, palette and RGBA images are converted; images of another size are resized
    (bicubic).

    Args:
        name: identifies the file in error messages.
        prepare: applied to the Pillow image before it is resized.

    Raises:
        UserError: if `content` is not a PNG or JPEG image, is truncated, or has too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise UserError(
                    f"{name} has {image.width}×{image.height} pixels, at most {MAX_PIXELS} in all and "
                    f"{MAX_SIDE} per side are decoded: replace or delete it"
                )
            image.load()
            image = _eight_bit(image).convert("RGB" if channels == 3 else "L")
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not a readable image (not {' or '.join(FORMATS)}): replace or delete it"
        ) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f"{name} is not a readable image ({reason(error)}): replace or delete it") from error
    if prepare is not None:
        image = prepare(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return numpy.asarray(image).reshape(size, size, channels)


def _eight_bit(image: Any) -> Any:
    """Convert 16-bit grey to 8-bit grey. Pillow's own conversion would clip every bright pixel to white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((numpy.asarray(image).astype(numpy.int64) // 256).clip(0, 255).astype(numpy.uint8))
