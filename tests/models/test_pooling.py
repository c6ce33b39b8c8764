"""Fast convolution and pooling against torch's own."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d

from models.layers import PLAIN
from models.lenet5 import lenet5
from models.pooling import ReluAvgPool2d, conv2d_by_windows


def test_fused_relu_and_pooling_equal_torchs_with_gradients():
    inputs = torch.randn(3, 5, 8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ReluAvgPool2d(), (inputs,))
    torch.testing.assert_close(ReluAvgPool2d()(inputs), avg_pool2d(inputs.relu(), 2), rtol=0, atol=1e-12)


def test_convolution_by_windows_puts_every_output_in_its_place():
    inputs = torch.randn(2, 3, 10, 12, dtype=torch.float64)
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    expected = conv2d(inputs, weight)
    by_windows = conv2d_by_windows(inputs, weight)
    assert by_windows.shape == (2, 4, 4, 3, 4)
    for place, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        torch.testing.assert_close(by_windows[:, place], expected[:, :, down::2, right::2])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_lenet5_equals_its_layers_applied_one_by_one(batch_norm):
    torch.manual_seed(0)
    network = lenet5(layers=PLAIN, batch_norm=batch_norm).double()
    network.add_head(5)
    network.double()
    inputs = torch.randn(16, 3, 32, 32, dtype=torch.float64)
    hidden = inputs
    twin = lenet5(layers=PLAIN, batch_norm=batch_norm).double()
    twin.load_state_dict({k: v for k, v in network.state_dict().items() if k.startswith("features")})
    for layer in twin.features:
        hidden = layer(hidden)
    fast = network.features(inputs)
    torch.testing.assert_close(fast, hidden, rtol=0, atol=1e-12)
    fast.square().sum().backward()
    hidden.square().sum().backward()
    pairs = zip(network.features.named_parameters(), twin.features.parameters(), strict=True)
    for (name, parameter), other in pairs:
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)
    for buffer, other in zip(network.features.buffers(), twin.features.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)
