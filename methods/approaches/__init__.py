"""Approaches to a sequence of tasks, by their names on the command line."""

from methods.approaches.alone import Alone
from methods.approaches.base import Approach
from methods.approaches.er import ER
from methods.approaches.ewc import EWC
from methods.approaches.joint import Joint
from methods.approaches.lwf import LwF
from methods.approaches.naive import Naive
from methods.approaches.packnet import PackNet
from methods.approaches.spg import SPG

APPROACHES: dict[str, type[Approach]] = {
    "spg": SPG,
    "ncl": Naive,
    "one": Alone,
    "mtl": Joint,
    "ewc": EWC,
    "packnet": PackNet,
    "er": ER,
    "lwf": LwF,
}
