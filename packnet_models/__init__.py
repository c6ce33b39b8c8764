"""The architectures of `models` with plain layers, for PackNet and the scratch baselines."""

from models import architectures

ARCHITECTURES = architectures("plain")
