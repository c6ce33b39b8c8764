"""Naive continual learning (`ncl`): nothing prevents forgetting."""

from methods.approaches.base import Approach


class Naive(Approach):
    """Trains one network on one task after another, by plain gradient descent."""
