"""Every architecture with CPG's sharable layers; `packnet_models` has them with plain ones."""

from models.registry import BUILDERS, CONVOLUTIONAL, Architecture, architectures

__all__ = ["ARCHITECTURES", "BUILDERS", "CONVOLUTIONAL", "Architecture", "architectures"]

ARCHITECTURES = architectures("sharable")
