"""Verification: metrics against naive implementations, and the command on a few synthetic faces."""

import json
import random
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import models
from tests.helpers import refusal
from tools import verify_pairs
from tools.export_task import as_state_dict
from utils.verification import best_threshold, fold_accuracies, true_accept_rate


def synthetic(count: int, *, seed: int, digits: int = 2) -> tuple[list[float], list[bool]]:
    draw = random.Random(seed)
    same = [draw.random() < 0.5 for _ in range(count)]
    return [round(draw.gauss(1.0 if truth else 0.0, 1.0), digits) for truth in same], same


@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "no ties"])
def test_ties_between_the_best_thresholds_go_to_the_lowest(digits: int) -> None:
    similarities, same = synthetic(60, seed=1, digits=digits)
    pairs = list(zip(similarities, same, strict=True))
    levels = sorted(set(similarities))
    middles = [(low + high) / 2 for low, high in pairwise(levels)]

    def right(threshold: float) -> int:
        return sum((value > threshold) == truth for value, truth in pairs)

    every = [float("-inf"), *middles, float("inf")]
    assert best_threshold(pairs) == max(every, key=lambda threshold: (right(threshold), -threshold))


def test_each_fold_uses_the_threshold_fitted_to_the_others() -> None:
    similarities, same = synthetic(50, seed=2)
    expected = []
    for fold in range(5):
        held = range(10 * fold, 10 * fold + 10)
        threshold = best_threshold([(similarities[i], same[i]) for i in range(50) if i not in held])
        expected.append(sum((similarities[i] > threshold) == same[i] for i in held) / 10)
    assert fold_accuracies(similarities, same, folds=5) == expected
    with pytest.raises(ValueError, match="50 pairs are not 7 equal folds"):
        fold_accuracies(similarities, same, folds=7)


@pytest.mark.parametrize("far", [0.0, 0.1, 0.3, 0.99])
def test_the_true_accept_rate_is_the_highest_that_the_false_accept_rate_allows(far: float) -> None:
    similarities, same = synthetic(200, seed=3, digits=6)
    own = [value for value, truth in zip(similarities, same, strict=True) if truth]
    others = [value for value, truth in zip(similarities, same, strict=True) if not truth]
    allowed = [
        threshold
        for threshold in similarities
        if sum(value > threshold for value in others) <= far * len(others)
    ]
    expected = max(sum(value > threshold for value in own) / len(own) for threshold in allowed)
    assert true_accept_rate(similarities, same, far=far) == expected
    with pytest.raises(ValueError, match="pairs of one identity and pairs of two"):
        true_accept_rate(own, [True] * len(own), far=far)


@pytest.fixture
def faces(tmp_path: Path) -> list[str]:
    """Arguments: noisy images in one colour per person, a narrow SphereNet, and two folds of 2 + 2 pairs."""
    draw = numpy.random.default_rng(0)
    for number, name in enumerate(("ada", "bo", "cy", "di")):
        folder = tmp_path / "faces" / name
        folder.mkdir(parents=True)
        colour = numpy.array([40, 220, 40])[[number % 3, (number // 2) % 3, (number + 1) % 3]]
        for image in (1, 2):
            pixels = numpy.clip(colour + draw.normal(0, 5, (20, 20, 3)), 0, 255).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{image:04}.png")
    (tmp_path / "pairs.txt").write_text(
        "2\t2\nada\t1\t2\nbo\t1\t2\nada\t1\tbo\t1\nbo\t2\tcy\t1\n"
        "cy\t1\t2\ndi\t1\t2\ncy\t1\tdi\t2\nada\t2\tdi\t1\n"
    )
    torch.manual_seed(0)
    build = partial(models.ARCHITECTURES["spherenet20"], size=16)
    network = build(width=0.25)
    network.add_head(4)
    card = {
        "architecture": {"name": "spherenet20", "layers": "sharable"},
        **{"width": 0.25, "in_channels": 3, "size": 16, "classes": list("abcd"), "modality": "image"},
        **{"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (tmp_path / "net.pt").write_bytes(as_state_dict(network, card))
    flags = ("--pairs", tmp_path / "pairs.txt", "--images", tmp_path / "faces", "--device", "cpu")
    return [str(tmp_path / "net.pt"), *map(str, flags)]


def test_noisy_images_of_one_colour_are_matched(faces: list[str], tmp_path: Path) -> None:
    verify_pairs.main([*faces, "--to", str(tmp_path / "metrics.json"), "--batch_size", "3"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["tar"] == 1.0
    assert len(metrics["accuracies"]) == 2
    assert metrics["accuracy"] >= 0.75


def test_unreadable_pairs_are_reported_in_one_line(faces: list[str], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    good = pairs.read_text()
    for text, expected in (
        (good.replace("2\t2\n", "3\t2\n", 1), "has 8 pairs, but its first line says 3 folds of 2 + 2"),
        (good + "ada\n", "'ada' is not a pair"),
        ("", "is not in LFW's format"),
        (good.replace("di\t1\n", "ed\t1\n"), "ed_0001.jpg not found: correct --images or the pairs"),
    ):
        pairs.write_text(text)
        assert expected in refusal(verify_pairs.main, faces)
    pairs.unlink()
    assert "pairs.txt not found: correct --pairs" in refusal(verify_pairs.main, faces)
