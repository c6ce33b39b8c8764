"""Searching a sequence's two dropouts on validation accuracy."""

import argparse
import copy
import logging

from tools.sequence_run import SequenceRun
from utils.errors import UserError


def tune(args: argparse.Namespace) -> tuple[float, float]:
    """Try `--tune_trials` pairs of dropouts and log the best one.

    The figure is the mean validation accuracy over all tasks after the last one; the test set is not
    looked at. Each pair has a run of its own, `<run>/tune/<conv>-<rest>`, so that a search that was
    stopped does not repeat what is done.

    Returns:
        The dropouts of the first two convolutions, and of the rest.

    Raises:
        UserError: if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "--tune needs Optuna: install it with `.venv/bin/python -m pip install 'optuna>=3.6'`"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        pair = [trial.suggest_float(name, 0.1, 0.5, step=0.01) for name in ("conv", "rest")]
        tried = copy.copy(args)
        tried.dropout = [round(value, 2) for value in pair]
        run = SequenceRun(tried, seed=args.seed, decide_on="validation")
        accuracy = run.run()["average_accuracy"]
        logging.info("Dropout %s: validation accuracy %.4f", tried.dropout, accuracy)
        return accuracy

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
    study.optimize(objective, n_trials=args.tune_trials)
    best = (round(study.best_params["conv"], 2), round(study.best_params["rest"], 2))
    logging.info("We choose --dropout %s %s (validation accuracy %.4f)", *best, study.best_value)
    return best
