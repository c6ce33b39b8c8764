"""Fixtures for raw layouts that are built by the tests."""

import numpy
import pytest
from PIL import Image

from data import sequences
from data.loading import load_split
from data.tables import load_table


@pytest.fixture
def images_at():
    """Write `count` random JPEG files into a folder; returns their names."""

    def write(folder, count, *, size=(8, 8), prefix="image", start=0):
        folder.mkdir(parents=True, exist_ok=True)
        generator = numpy.random.default_rng(start)
        names = []
        for number in range(start, start + count):
            pixels = generator.integers(0, 256, (*size, 3), dtype=numpy.uint8)
            names.append(f"{prefix}_{number}.JPEG")
            Image.fromarray(pixels).save(folder / names[-1], format="JPEG")
        return names

    return write


@pytest.fixture
def change_sequence(monkeypatch):
    """Replace some numbers of a published sequence by smaller ones."""

    def change(name, **numbers):
        entry = sequences._entries()[name] | numbers
        monkeypatch.setattr(sequences, "_entries", lambda: {name: entry})

    return change


@pytest.fixture
def load_cached():
    """Load one split of a task."""

    def load(config, root, task="1", split="train"):
        table = load_table(str(config), data_root=root)
        return load_split(table, table.task(task), split, data_root=root)

    return load
