"""Fixtures shared by all tests."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from tests.helpers import Fleet, build_fleet

_CIFAR_ZIP = Path(__file__).parents[1].parent / "shared" / "data" / "cifar100_org.zip"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Results (to the bit) and running times must not depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture
def cifar_zip() -> Path:
    """The real CIFAR-100 as a zip of PNG files, if available."""
    if not _CIFAR_ZIP.exists():
        pytest.skip(f"{_CIFAR_ZIP.name} not found")
    return _CIFAR_ZIP


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """Build a tree of random PNG files under `<tmp_path>/data/<root>`; returns `<tmp_path>/data`."""

    def make(
        tasks: Mapping[str, Sequence[str]],
        *,
        root: str = "pictures",
        size: int = 8,
        train: int = 10,
        test: int = 3,
    ) -> Path:
        generator = numpy.random.default_rng(0)
        for split, count in (("train", train), ("test", test)):
            for task, classes in tasks.items():
                for name in classes:
                    folder = tmp_path / "data" / root / split / task / name
                    folder.mkdir(parents=True)
                    for number in range(count):
                        pixels = generator.integers(0, 256, (size, size, 3), dtype=numpy.uint8)
                        Image.fromarray(pixels).save(folder / f"{name}_{number:03}.png")
        return tmp_path / "data"

    return make


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[[str], Path]:
    """Write a table's .toml file; returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "table.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root in which the digits are decoded once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def trained_fleet(tmp_path_factory: pytest.TempPathFactory, digits_root: Path) -> Fleet:
    """A small trained fleet, for tests that only read it."""
    return build_fleet(tmp_path_factory.mktemp("fleet"), digits_root)


@pytest.fixture
def fleet(trained_fleet: Fleet, tmp_path: Path) -> Fleet:
    """A copy of the fleet, for tests that change it."""
    return trained_fleet.copy(tmp_path / "fleet")


@pytest.fixture
def fresh(tmp_path: Path, digits_root: Path) -> Fleet:
    """A fleet with nothing trained."""
    return Fleet(root=tmp_path / "fresh", data=digits_root)
