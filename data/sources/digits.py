"""scikit-learn's bundled handwritten digits, which need no download."""

from functools import cache, partial
from pathlib import Path

import numpy
import torch
from torch import Tensor

from data.raw_files import RawImages
from data.tables import Table, Task

# Increment the version when the images built here change.
_SIGNATURE = "scikit-learn digits, version 1"


def find(table: Table, task: Task, split: str, *, data_root: Path) -> RawImages:
    """One split of a task whose classes are digits (`"0"` … `"9"`)."""
    return RawImages(_SIGNATURE, partial(_decode, task, split, size=table.size))


def _decode(task: Task, split: str, *, size: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, size, size), class by class, and labels int64 (N,).

    Every fifth image of a class is a test image. This does not depend on a seed and covers all writers,
    whose images are consecutive in the collection.
    """
    from PIL import Image

    grey, digits = _collection()
    images, labels = [], []
    for label, name in enumerate(task.classes):
        of_class = numpy.flatnonzero(digits == int(name))
        is_test = numpy.arange(len(of_class)) % 5 == 4
        for index in of_class[is_test if split == "test" else ~is_test]:
            image = Image.fromarray(grey[index]).resize((size, size), Image.Resampling.BICUBIC)
            images.append(numpy.asarray(image))
            labels.append(label)
    single = torch.from_numpy(numpy.stack(images))
    return single[:, None].repeat(1, 3, 1, 1), torch.tensor(labels, dtype=torch.int64)


@cache
def _collection() -> tuple[numpy.ndarray, numpy.ndarray]:
    """Images uint8 (1797, 8, 8), scaled from 0…16 to 0…255, and the digits that they show."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = (bunch.images.astype(numpy.int64) * 255 + 8) // 16
    return grey.astype(numpy.uint8), bunch.target
