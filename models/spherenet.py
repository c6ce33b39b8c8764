"""SphereNet-20 and its angular softmax (Liu et al. 2017, "SphereFace")."""

import torch
from torch import Tensor, channels_last, nn
from torch.nn.functional import cross_entropy, linear, normalize

from models.imagenet import SMALL, check_size
from models.layers import Layers
from models.network import Network, init_layers

# Output channels and residual units of each stage (the paper's table 2).
_STAGES = ((64, 1), (128, 2), (256, 4), (512, 1))
MARGIN = 4
# λ = max(5, 1000 / (1 + 0.12 · step)), as the published network is trained.
_FIRST_LAMBDA, _LAMBDA_DECAY, _LAST_LAMBDA = 1000.0, 0.12, 5.0


def spherenet20(*, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 112) -> Network:
    """Build SphereNet-20: 20 3×3 convolutions with PReLU in four strided stages, a linear → 512.

    Args:
        layers: layer types to build from.
        width: multiplier of all channel counts, which are rounded down.
        in_channels, size: channels and side (in pixels) of the input images. Below 64 pixels the first
            convolution has stride 1.

    Raises:
        ValueError: for images under 16 pixels, or if the width leaves no channels.
    """
    check_size(size, smallest=16)
    if int(64 * width) < 1:
        raise ValueError(f"width {width:.3g} leaves none of 64 channels")
    features = nn.Sequential()
    channels, left = in_channels, size
    for number, (count, units) in enumerate(_STAGES):
        stride = 1 if number == 0 and size < SMALL else 2
        outputs, left = int(count * width), -(-left // stride)
        features.append(layers.conv2d(channels, outputs, 3, stride=stride, padding=1))
        features.append(nn.PReLU(outputs))
        features.extend(_Residual(outputs, layers=layers) for _ in range(units))
        channels = outputs
    features.extend([nn.Flatten(), layers.linear(channels * left**2, channels)])
    init_layers(features)
    # Without batch norms, residual units need small initial weights (N(0, 0.01), as published).
    for unit in features:
        if isinstance(unit, _Residual):
            nn.init.normal_(unit.first.weight, std=0.01)
            nn.init.normal_(unit.second.weight, std=0.01)
    network = SphereNetwork(features=features, feature_width=channels)
    return network.to(memory_format=channels_last)


class _Residual(nn.Module):
    """A residual unit of two 3×3 convolutions, each with PReLU."""

    def __init__(self, channels: int, *, layers: Layers) -> None:
        super().__init__()
        self.first = layers.conv2d(channels, channels, 3, padding=1)
        self.first_slope = nn.PReLU(channels)
        self.second = layers.conv2d(channels, channels, 3, padding=1)
        self.second_slope = nn.PReLU(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first_slope(self.first(inputs))
        return inputs + self.second_slope(self.second(hidden))


class SphereNetwork(Network):
    """A network with angular heads."""

    def new_head(self, in_features: int, num_classes: int) -> nn.Module:
        return AngularHead(in_features, num_classes)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.classifiers[self.active].loss(logits, labels)


class AngularHead(nn.Module):
    """Logits ‖x‖ cos θ, with θ the angle between features x and a class's weight; trained by A-Softmax.

    In training mode an extra column holds −‖x‖, which the loss needs. No logit is below it, so the argmax
    does not change.

    Attributes:
        weight: (classes, features); only the directions of its rows matter.
        steps: int64 scalar, number of training steps so far.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.normal_(self.weight, std=0.01)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        logits = linear(features, normalize(self.weight, dim=1))
        if not self.training:
            return logits
        return torch.cat([logits, -features.norm(dim=1, keepdim=True)], dim=1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A-Softmax: cross-entropy with the label's logit ‖x‖ (λ cos θ + ψ(θ)) / (1 + λ) (eq. 7).

        ψ(θ) = (−1)^k cos 4θ − 2k for θ in [kπ/4, (k + 1)π/4] decreases from 1 to −7; λ decays per step.

        Args:
            logits: (B, classes + 1) in training; (B, classes) in evaluation, where the loss has no margin.
            labels: (B,).
        """
        if not self.training:
            return cross_entropy(logits, labels)
        # Angles need single precision, even if the logits are bfloat16.
        logits = logits.float()
        logits, norm = logits[:, :-1], -logits[:, -1:]
        chosen = labels[:, None]
        cosine = (logits.gather(1, chosen) / norm.clamp(min=1e-12)).clamp(-1.0, 1.0)
        weight = (_FIRST_LAMBDA / (1.0 + _LAMBDA_DECAY * self.steps)).clamp(min=_LAST_LAMBDA)
        target = norm * (weight * cosine + margined(cosine)) / (1.0 + weight)
        self.steps += 1
        return cross_entropy(logits.scatter(1, chosen, target), labels)


def margined(cosine: Tensor) -> Tensor:
    """ψ(θ) from cos θ for margin 4 (eq. 7); differentiable with respect to cos θ."""
    multiple = 8 * cosine**4 - 8 * cosine**2 + 1  # cos 4θ
    k = (cosine.detach().acos() * MARGIN / torch.pi).floor().clamp(max=MARGIN - 1)
    return (1 - 2 * (k % 2)) * multiple - 2 * k
