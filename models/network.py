"""A backbone with one linear head per task."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Network(nn.Module):
    """`features` maps a batch to (B, feature_width); `classifiers[i]` maps that to task i's logits.

    Args:
        features: the backbone.
        feature_width: width of the backbone's output.

    Attributes:
        active: index of the active head; None: all heads, side by side.
        modality: current modality of the inputs, one of `modalities`.
    """

    def __init__(self, *, features: nn.Module, feature_width: int) -> None:
        super().__init__()
        self.features = features
        self.feature_width = feature_width
        self.classifiers = nn.ModuleList()
        self.active: int | None = -1
        self.modality = "image"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the network can read."""
        return ("image",)

    def encode(self, inputs: Tensor) -> Tensor:
        """Features (B, feature_width) of a batch of the current modality."""
        return self.features(inputs)

    def init_head(self, head: nn.Linear) -> None:
        """Initialise a new head."""
        init_linear(head)

    def new_head(self, in_features: int, num_classes: int) -> nn.Module:
        """Build a head without appending it."""
        head = nn.Linear(in_features, num_classes)
        self.init_head(head)
        return head

    def add_head(self, num_classes: int, *, in_features: int | None = None) -> nn.Module:
        """Append a head and activate it."""
        head = self.new_head(in_features or self.feature_width, num_classes)
        self.classifiers.append(head)
        self.active = len(self.classifiers) - 1
        return head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, num_classes) of the active head, or of all heads side by side if none is active."""
        if self.active is None:
            features = self.encode(inputs)
            return torch.cat([head(features) for head in self.classifiers], dim=1)
        return self.classifiers[self.active](self.encode(inputs))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Training loss (scalar) from the logits that `forward` returned and labels (B,)."""
        return cross_entropy(logits, labels)


class MultimodalNetwork(Network):
    """A network that reads inputs of several modalities.

    `features.inputs` maps each modality to its own modules; `features(inputs, modality=…)` reads a batch.
    """

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.features.inputs)

    def init_head(self, head: nn.Linear) -> None:
        init_unit(head)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.features(inputs, modality=self.modality)


def init_layers(features: nn.Module) -> None:
    """Initialise convolutions and linears in module order, and reset batch norms to weight 1 and bias 0."""
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            init_conv(layer)
        elif isinstance(layer, nn.Linear):
            init_linear(layer)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


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


def init_unit(layer: nn.Linear) -> None:
    """N(0, 1 / fan-in), zero bias: unit-variance inputs give unit-variance outputs."""
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
