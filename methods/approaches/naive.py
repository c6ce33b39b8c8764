"""Naive continual learning (`ncl`): nothing is done against forgetting."""

from methods.approaches.base import Approach


class Naive(Approach):
    """One network that learns task after task by plain gradient descent."""
