"""Report the study of where picking a backbone pays, and which rule picks best.

benchmarks/study.sh trains the networks: every target on every backbone, with few and with many images.
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau, weightedtau

from data.tables import Table, Task, load_table
from methods.footprint import stored_bytes
from methods.ownership import SharedNetwork
from methods.rules import RULES, goodness, score_of
from pipeline import flags
from pipeline.architectures import PLAIN, SHARABLE, requested_architecture
from pipeline.fleet import paths_of, read_control, read_widths, test_accuracy
from training.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.files import csv_text, read_csv, write_atomically
from utils.paired_tests import permutation_test
from utils.paths import Paths, checkpoint_in
from utils.resampling import Estimate, bootstrap_mean, holm
from utils.tables import aligned

WIDTH = 1.0
IDS = ("target_id", "task_id")
BEST = 3

NOTES = """\
Test accuracy at width 1.0; decisions used held-out training images. N: training images per class. packnet,
cpg: the target's own network, trained alone with either kind of layers. any: mean over all backbones, which
is what a random choice reaches. best: the best backbone, known only afterwards. probe: a linear classifier
on the backbone's frozen features. copy: a dense copy of its network, fine-tuned, whose own task is lost.
gain: on any backbone, minus CPG alone, and minus the copy (over the targets whose copies were all trained).
[95 % bootstrap intervals over targets and seeds]."""
RULE_NOTES = """\
reached: accuracy on the backbone that the rule picks. regret: best backbone minus reached. gain: reached
minus any backbone. τ, weighted τ: rank correlation of a target's scores with what its backbones reached.
in best 3: how often the pick is one of the three best. p: against farthest, paired permutation test over
targets, with Holm's correction."""


@dataclass(frozen=True)
class Alone:
    """A target's own networks."""

    packnet: float
    cpg: float


@dataclass(frozen=True)
class Pair:
    """A target on one backbone, and the controls on it; None where a control was not run.

    Attributes:
        kept, left: the backbone's accuracy on its own task before and after the copy was fine-tuned.
        scores: score → value, as the search wrote them.
    """

    backbone: Task
    accuracy: float
    copy: float | None
    kept: float | None
    left: float | None
    copy_bytes: int | None
    probe: float | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """One target with one seed and one number of images per class."""

    target: Task
    seed: int
    alone: Alone
    pairs: Sequence[Pair]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    table = load_table(args.dataset_config, data_root=args.data_root)
    results = {per_class: collect(args, table, per_class) for per_class in args.per_class}
    results = {per_class: found for per_class, found in results.items() if found}
    if not results:
        raise UserError(
            f"no finished target of table {table.name} in the study under {args.checkpoints_root}: run "
            f"bash benchmarks/study.sh {args.dataset_config} first"
        )
    print(gains_text(results))
    print(NOTES)
    for per_class, found in results.items():
        print(f"\nRules at {per_class} images per class, {described(found)}")
        print(rules_text(found))
    print(RULE_NOTES)
    print(f"\n{costs_text(args, table, results)}")
    folder = args.logs_root / "study" / args.arch
    for name, rows in tables(results).items():
        path = folder / f"study_{table.name}_{name}.csv"
        write_atomically(path, csv_text(rows, list(rows[0])))
        print(f"{name}: {path}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    parser.add_argument(
        "--per_class", nargs="+", default=["50"], help="Training images per class: numbers, and all."
    )
    parser.add_argument("--seeds", type=flags.SEED, nargs="+", default=[1], help="Seeds.")
    parser.set_defaults(protocol="heldout")
    return parser.parse_args(argv)


# Reading


def collect(args: argparse.Namespace, table: Table, per_class: str) -> list[Result]:
    """Every finished target of the study at this number of images per class."""
    results = []
    for seed in args.seeds:
        run = Paths.study_run_name(arch=args.arch, seed=seed, per_class=per_class)
        paths = replace(paths_of(args), run=run)
        scores = read_scores(paths.table_csv(table.name))
        for target in table.select(args.dataset):
            result = read_result(target, seed=seed, table=table, paths=paths, arch=args.arch, scores=scores)
            if result is not None:
                results.append(result)
    return results


def read_result(
    target: Task,
    *,
    seed: int,
    table: Table,
    paths: Paths,
    arch: str,
    scores: Mapping[tuple[str, str], Mapping[str, float]],
) -> Result | None:
    """One target; None unless its own networks and its networks on all backbones are finished."""
    packnet = test_accuracy(paths.baselines(table.name) / target.name, arch=arch, layers=PLAIN)
    cpg = test_accuracy(paths.single_scratch(table.name, target.name), arch=arch, layers=SHARABLE)
    others = [task for task in table.tasks if task != target]
    folders = {task: paths.target(table.name, task.name, target.name) for task in others}
    if (
        packnet is None
        or cpg is None
        or not all((folder / "widths.json").exists() for folder in folders.values())
    ):
        logging.warning("%s, seed %d: not finished in %s, left out", target.name, seed, paths.run)
        return None
    pairs = []
    for backbone, folder in folders.items():
        copy, probe = (
            read_control(paths.reused(table.name, backbone.name, target.name, how=how))
            for how in ("copy", "probe")
        )
        pairs.append(
            Pair(
                backbone=backbone,
                accuracy=read_widths(folder)[WIDTH]["test_accuracy"],
                copy=copy.get("test_accuracy"),
                kept=copy.get("backbone_accuracy_before"),
                left=copy.get("backbone_accuracy_after"),
                copy_bytes=copy.get("bytes"),
                probe=probe.get("test_accuracy"),
                scores=scores.get((str(target.id), str(backbone.id)), {}),
            )
        )
    return Result(target=target, seed=seed, alone=Alone(packnet=packnet, cpg=cpg), pairs=pairs)


def read_scores(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(Target's id, candidate's id) → score → value, from the CSV of stage 3-1; {} if it was not run."""
    if not path.exists():
        return {}
    rows = read_csv(path, columns=IDS, remedy="delete it, and run the study again")
    return {
        (row["target_id"], row["task_id"]): {
            name: float(value) for name, value in row.items() if name not in IDS and value
        }
        for row in rows
    }


# Statistics


def matrix(results: Sequence[Result], value: Callable[[Result], float]) -> np.ndarray:
    """A value per target (rows) and seed (columns); targets that lack a seed are left out."""
    seeds = sorted({result.seed for result in results})
    found = {(result.target.id, result.seed): value(result) for result in results}
    targets = [
        target
        for target in sorted({result.target.id for result in results})
        if all((target, seed) in found for seed in seeds)
    ]
    return np.array([[found[target, seed] for seed in seeds] for target in targets])


def reached(result: Result) -> np.ndarray:
    """Accuracy on each backbone."""
    return np.array([pair.accuracy for pair in result.pairs])


def rules_in(results: Sequence[Result]) -> list[str]:
    """The rules whose scores every pair has."""
    common = set.intersection(*(set(pair.scores) for result in results for pair in result.pairs))
    return [rule for rule in RULES if score_of(rule) in common]


def goodness_of(result: Result, rule: str) -> np.ndarray:
    """How good each backbone is by a rule: higher is better."""
    return np.array([goodness(rule, pair.scores[score_of(rule)]) for pair in result.pairs])


def picked(result: Result, rule: str) -> float:
    """Accuracy on the backbone that the rule picks; the lowest id wins a tie."""
    return float(reached(result)[np.argmax(goodness_of(result, rule))])


@dataclass(frozen=True)
class Judgement:
    """How well a rule picks."""

    reached: Estimate
    regret: Estimate
    gain: Estimate
    tau: float
    weighted_tau: float
    in_best: float
    p: float


def judge(results: Sequence[Result]) -> dict[str, Judgement]:
    """Every rule's judgement, the most accurate first."""
    rules = rules_in(results)
    by_target = {
        rule: matrix(results, lambda result, rule=rule: picked(result, rule)).mean(axis=1) for rule in rules
    }
    raw = {
        rule: permutation_test(by_target[rule] - by_target["farthest"])
        for rule in rules
        if rule != "farthest"
    }
    corrected = holm(raw) | {"farthest": float("nan")}
    found = {}
    for rule in rules:
        taus = [kendalltau(goodness_of(result, rule), reached(result)).statistic for result in results]
        weighted = [weightedtau(goodness_of(result, rule), reached(result)).statistic for result in results]
        found[rule] = Judgement(
            reached=estimate(results, lambda result, rule=rule: picked(result, rule)),
            regret=estimate(results, lambda result, rule=rule: reached(result).max() - picked(result, rule)),
            gain=estimate(results, lambda result, rule=rule: picked(result, rule) - reached(result).mean()),
            tau=float(np.nanmean(taus)),
            weighted_tau=float(np.nanmean(weighted)),
            in_best=float(
                np.mean([picked(result, rule) >= np.sort(reached(result))[-BEST:][0] for result in results])
            ),
            p=corrected[rule],
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].reached.mean))


def estimate(results: Sequence[Result], value: Callable[[Result], float]) -> Estimate:
    """The mean of a value over targets and seeds, with its interval."""
    return bootstrap_mean(matrix(results, value))


def with_control(results: Sequence[Result], name: str) -> list[Result]:
    """The results whose control was run on every backbone."""
    return [result for result in results if all(getattr(pair, name) is not None for pair in result.pairs)]


def mean_of(result: Result, name: str) -> float:
    """Mean of a control over the backbones."""
    return float(np.mean([getattr(pair, name) for pair in result.pairs]))


# Text


def described(results: Sequence[Result]) -> str:
    """How many targets, seeds and pairs were measured."""
    counts = {
        "target": len({result.target.id for result in results}),
        "seed": len({result.seed for result in results}),
        "pair": sum(len(result.pairs) for result in results),
    }
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())


def number(value: float, spec: str) -> str:
    """A number, or a dash if there is none."""
    return "-" if np.isnan(value) else format(value, spec)


def gains_text(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of what targets gain, by images per class."""
    header = ["N", "pairs", "packnet", "cpg", "any", "best", "gain over cpg alone", "probe", "copy"]
    rows = []
    for per_class, found in results.items():
        values = [
            *(np.mean([getattr(result.alone, name) for result in found]) for name in ("packnet", "cpg")),
            np.mean([reached(result).mean() for result in found]),
            np.mean([reached(result).max() for result in found]),
        ]
        gain = estimate(found, lambda result: reached(result).mean() - result.alone.cpg)
        copied, probed = (with_control(found, name) for name in ("copy", "probe"))
        probe = f"{np.mean([mean_of(result, 'probe') for result in probed]):.3f}" if probed else "-"
        copy, over_copy, targets = "-", "-", "-"
        if copied:
            copy = f"{np.mean([mean_of(result, 'copy') for result in copied]):.3f}"
            over_copy = str(estimate(copied, lambda result: reached(result).mean() - mean_of(result, "copy")))
            targets = str(len({result.target.id for result in copied}))
        count = str(sum(len(result.pairs) for result in found))
        shown = [f"{value:.3f}" for value in values]
        rows.append([per_class, count, *shown, str(gain), probe, copy, over_copy, targets])
    return aligned([*header, "gain over copy", "targets copied"], rows)


def rules_text(results: Sequence[Result]) -> str:
    """The table of the rules."""
    if "farthest" not in rules_in(results):
        return "no scores: run stage 3-1 for these targets"
    rows = [
        [
            rule,
            f"{found.reached.mean:.3f}",
            str(found.regret),
            str(found.gain),
            number(found.tau, "+.2f"),
            number(found.weighted_tau, "+.2f"),
            f"{found.in_best:.2f}",
            number(found.p, ".3f"),
        ]
        for rule, found in judge(results).items()
    ]
    header = ["rule", "reached", "regret", "gain", "τ", "weighted τ", f"in best {BEST}", "p"]
    return aligned(header, rows)


def costs_text(args: argparse.Namespace, table: Table, results: Mapping[str, Sequence[Result]]) -> str:
    """What the backbone's task keeps, and what both tasks take."""
    per_class, found = next(iter(results.items()))
    pairs = [pair for result in found for pair in result.pairs if pair.kept is not None]
    if not pairs:
        return "The control copy was not run."
    result = found[0]
    run = Paths.study_run_name(arch=args.arch, seed=result.seed, per_class=per_class)
    paths = replace(paths_of(args), run=run)
    folder = paths.target(table.name, result.pairs[0].backbone.name, result.target.name)
    build = requested_architecture(args, layers=SHARABLE, in_channels=table.channels, size=table.size)
    path = checkpoint_in(folder, remedy="run the study again")
    payload = load_checkpoint(path, architecture=args.arch, layers=SHARABLE, sizes=build.sizes)
    stored = stored_bytes(SharedNetwork.from_payload(payload, build=build, source=path))["total"]
    kept, left = (np.mean([getattr(pair, name) for pair in pairs]) for name in ("kept", "left"))
    copied = np.mean([pair.copy_bytes for pair in pairs])
    return (
        f"At {per_class} images per class, fine-tuning a copy changes the backbone's own accuracy from "
        f"{kept:.3f} to {left:.3f}; CPG leaves it as it is.\nBoth tasks are stored in "
        f"{stored / 1e6:.2f} MB with CPG, and in {copied / 1e6:.2f} MB with a copy for each."
    )


def tables(results: Mapping[str, Sequence[Result]]) -> dict[str, list[dict]]:
    """The measurements as tables: one row per pair, and one per rule."""
    pairs = [
        {
            "per_class": per_class,
            "seed": result.seed,
            "target": result.target.name,
            "backbone": pair.backbone.name,
            "packnet_alone": result.alone.packnet,
            "cpg_alone": result.alone.cpg,
            "on_backbone": pair.accuracy,
            "copy": pair.copy,
            "probe": pair.probe,
            "backbone_before_copy": pair.kept,
            "backbone_after_copy": pair.left,
        }
        for per_class, found in results.items()
        for result in found
        for pair in result.pairs
    ]
    rules = [
        {
            "per_class": per_class,
            "rule": rule,
            **{
                f"{name}{suffix}": getattr(getattr(judged, name), part)
                for name in ("reached", "regret", "gain")
                for part, suffix in (("mean", ""), ("low", "_low"), ("high", "_high"))
            },
            **{name: getattr(judged, name) for name in ("tau", "weighted_tau", "in_best", "p")},
        }
        for per_class, found in results.items()
        if "farthest" in rules_in(found)
        for rule, judged in judge(found).items()
    ]
    return {"pairs": pairs} | ({"rules": rules} if rules else {})


if __name__ == "__main__":
    errors.run(main)
