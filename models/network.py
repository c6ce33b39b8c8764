"""A backbone with one linear head a task."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """`features` maps a batch to (B, feature_width); `classifiers[i]` maps that to task i's logits.

    Args:
        features: the backbone.
        feature_width: width of its output.

    Attributes:
        active: index of the head in use; None: all of them, side by side.
    """

    def __init__(self, *, features: nn.Module, feature_width: int) -> None:
        super().__init__()
        self.features = features
        self.feature_width = feature_width
        self.classifiers = nn.ModuleList()
        self.active: int | None = -1

    def add_head(self, num_classes: int, *, in_features: int | None = None) -> nn.Linear:
        """Append a head, N(0, 0.01) with zero bias, and make it the active one."""
        head = nn.Linear(in_features or self.feature_width, num_classes)
        init_linear(head)
        self.classifiers.append(head)
        self.active = len(self.classifiers) - 1
        return head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, num_classes) of the active head; of all heads in turn, where none is active."""
        if self.active is None:
            features = self.features(inputs)
            return torch.cat([head(features) for head in self.classifiers], dim=1)
        return self.classifiers[self.active](self.features(inputs))


def init_conv(layer: nn.Conv2d) -> None:
    """Kaiming-normal over the fan-out, zero bias."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_linear(layer: nn.Linear) -> None:
    """N(0, 0.01), zero bias."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
