"""The approaches to a sequence of tasks, by the names of the command line."""

from methods.ewc import EWC
from methods.packnet import PackNet
from methods.sequence import Alone, Joint, Naive
from methods.spg import SPG

APPROACHES: dict[str, type[Naive]] = {
    "spg": SPG,
    "ncl": Naive,
    "one": Alone,
    "mtl": Joint,
    "ewc": EWC,
    "packnet": PackNet,
}
