"""A network per task (`one`), the reference for forward transfer."""

from methods.approaches.base import Approach


class Alone(Approach):
    """Every task starts from a new network."""

    independent = True
