"""Verify pairs of faces with an exported network: do two images show the same person?

Pairs are read in LFW's format. The first line gives the number of folds and of pairs of each kind per fold
(`10<TAB>300`). Then follow, fold by fold, lines `name<TAB>1<TAB>4` for one person and lines
`name<TAB>1<TAB>other<TAB>2` for two. The similarity of two images is the cosine similarity of their features;
an image's features are concatenated with those of its mirror image. The report gives the accuracy, with each
fold's threshold fitted to the other folds, and the true accept rate at a given false accept rate.
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import json
import logging
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from data.images import decode_image
from data.loading import Normaliser
from models.network import Network
from pipeline import flags
from tools.export_task import read_exported
from utils.errors import UserError
from utils.files import write_atomically
from utils.folders import is_json_with, require_different, require_kind
from utils.runtime import autocast, resolve_device, set_up_process
from utils.verification import fold_accuracies, true_accept_rate


class Pair(NamedTuple):
    """Two images, as `<name>/<name>_<number>`, and whether they show the same person."""

    first: str
    second: str
    same: bool


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    require_different({"the network": args.network, "--pairs": args.pairs, "--to": args.to})
    require_kind(args.to, flag="--to", what="a report", fits=is_json_with("accuracy", "far"))
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    folds, pairs = read_pairs(args.pairs)
    network, card = read_exported(args.network, arch=args.arch)
    if card["modality"] != "image":
        raise UserError(f"{args.network} expects {card['modality']}: export an image task")
    device = resolve_device(args.device)
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    with autocast(device, args.precision):
        features = describe(
            network.to(device),
            names,
            card=card,
            folder=args.images,
            batch_size=args.batch_size,
            device=device,
        )
    row = {name: number for number, name in enumerate(names)}
    first, second = (features.float()[[row[pair[side]] for pair in pairs]] for side in (0, 1))
    similarities = cosine_similarity(first, second).tolist()
    same = [pair.same for pair in pairs]
    accuracies = fold_accuracies(similarities, same, folds=folds)
    accepted = true_accept_rate(similarities, same, far=args.far)
    accuracy, deviation = statistics.fmean(accuracies), statistics.stdev(accuracies)
    logging.info(
        "Accuracy on %d pairs in %d folds: %.4f ± %.4f (standard deviation over folds)",
        *(len(pairs), folds, accuracy, deviation),
    )
    logging.info("True accept rate at a false accept rate of %g: %.4f", args.far, accepted)
    if args.to:
        metrics = {"accuracy": accuracy, "accuracies": accuracies, "far": args.far, "tar": accepted}
        write_atomically(args.to, json.dumps(metrics, indent=1) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    parser.add_argument("network", type=Path, help="Task exported by tools.export_task, a .pt file.")
    parser.add_argument(
        "--arch",
        help="File and function of an architecture of your own, path/to/my_net.py:my_net (default: the "
        "network's is one of this project's).",
    )
    parser.add_argument(
        "--pairs", type=Path, required=True, help="File of pairs in LFW's format (default: none, required)."
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="Folder of images, <name>/<name>_0001.jpg or .png (default: none, required).",
    )
    parser.add_argument(
        "--far",
        type=flags.sparsity,
        default=1e-3,
        help="False accept rate to report at.",
    )
    parser.add_argument("--to", type=Path, help="JSON file for the metrics (default: none).")
    parser.add_argument("--batch_size", type=flags.positive_int, default=64, help="Images per batch.")
    flags.add_computing(parser)
    return parser.parse_args(argv)


def read_pairs(path: Path) -> tuple[int, list[Pair]]:
    """Read the number of folds and all pairs, fold by fold, from a file in LFW's format.

    Raises:
        UserError: if the file is missing, a line is malformed, or the first line gives another number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path} not found: correct --pairs") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: give a file in the format of LFW's pairs.txt") from error
    try:
        folds, of_a_kind = map(int, lines[0].split())
        pairs = [_pair(line) for line in lines[1:] if line.strip()]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not in LFW's format ({error}): correct it") from error
    if folds < 2 or of_a_kind < 1 or len(pairs) != 2 * folds * of_a_kind:
        raise UserError(
            f"{path} has {len(pairs)} pairs, but its first line says {folds} folds of "
            f"{of_a_kind} + {of_a_kind}: correct it"
        )
    return folds, pairs


def _pair(line: str) -> Pair:
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) == 3:
        first, second = (fields[0], fields[1]), (fields[0], fields[2])
    elif len(fields) == 4:
        first, second = (fields[0], fields[1]), (fields[2], fields[3])
    else:
        raise ValueError(f"{line!r} is not a pair")
    return Pair(*(f"{name}/{name}_{int(number):04}" for name, number in (first, second)), len(fields) == 3)


@torch.no_grad()
def describe(
    network: Network,
    names: Sequence[str],
    *,
    card: dict,
    folder: Path,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Features (N, 2 · feature_width) of the named images and, concatenated, of their mirror images."""
    normalise = Normaliser(*(torch.tensor(card[name], device=device) for name in ("mean", "std")))
    described = []
    for start in range(0, len(names), batch_size):
        pixels = _pixels(names[start : start + batch_size], card=card, folder=folder)
        inputs = normalise(pixels.to(device))
        described.append(torch.cat([network.encode(inputs), network.encode(inputs.flip(3))], dim=1))
    return torch.cat(described)


def _pixels(names: Iterable[str], *, card: dict, folder: Path) -> Tensor:
    images = []
    for name in names:
        paths = [folder / f"{name}{suffix}" for suffix in (".jpg", ".png")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise UserError(f"{paths[0]} not found: correct --images or the pairs")
        image = decode_image(
            path.read_bytes(), name=str(path), size=card["size"], channels=card["in_channels"]
        )
        images.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
    return torch.stack(images)


if __name__ == "__main__":
    errors.run(main)
