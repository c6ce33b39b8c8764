"""Tune the two dropouts of a sequence on validation accuracy."""

import argparse
import copy
import logging

from pipeline.spg import ContinualRun
from training.trackers import require_trackers
from utils.errors import UserError
from utils.files import csv_text, write_atomically
from utils.runtime import set_up_process


def run(args: argparse.Namespace) -> tuple[float, float]:
    """Try `--tune_trials` pairs of dropouts and log the best one.

    The objective is the mean validation accuracy over all tasks after the last one; the test set is not
    used. Each pair has its own run, `<run>/tune/<conv>-<rest>`, so that a resumed search skips finished
    pairs. `tune.csv` in the run's logs lists the pairs so far, best first.

    Returns:
        The dropouts of the first two convolutions, and of the rest.

    Raises:
        UserError: if Optuna is not installed.
    """
    require_trackers(args.log_to)
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "--tune needs Optuna: install it with `.venv/bin/python -m pip install 'optuna>=3.6'`"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    tried: dict[tuple[float, float], float] = {}

    def objective(trial: optuna.Trial) -> float:
        pair = tuple(round(trial.suggest_float(name, 0.1, 0.5, step=0.01), 2) for name in ("conv", "rest"))
        trial_args = copy.copy(args)
        trial_args.dropout = list(pair)
        attempt = ContinualRun(trial_args, seed=args.seed, decide_on="validation")
        tried[pair] = attempt.run()["average_accuracy"]
        best_first = sorted(tried.items(), key=lambda entry: -entry[1])
        rows = [{"conv": conv, "rest": rest, "accuracy": accuracy} for (conv, rest), accuracy in best_first]
        write_atomically(attempt.paths.tuning_file(), csv_text(rows, list(rows[0])))
        logging.info("Dropout %s: validation accuracy %.4f", trial_args.dropout, tried[pair])
        return tried[pair]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
    study.optimize(objective, n_trials=args.tune_trials)
    best = (round(study.best_params["conv"], 2), round(study.best_params["rest"], 2))
    logging.info("We choose --dropout %s %s (validation accuracy %.4f)", *best, study.best_value)
    return best
