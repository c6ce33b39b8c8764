"""Perceivers against the papers' equations, and the parts tied to a modality."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from methods.cpg import CPG, piggymask_optimizer, piggymasks_of, weight_optimizer
from methods.ownership import SharedNetwork
from models.layers import PLAIN, SHARABLE, PrivateLinear
from models.modalities import MODALITIES, Modality
from models.network import Network
from models.perceiver import EVALUATION_BYTES, PERCEIVER_PRESETS, perceiver
from models.perceiver_io import perceiver_io
from packnet_models import ARCHITECTURES
from training.loop import train_step
from training.method import Method
from utils.errors import UserError

SMALL = {
    "num_latents": 6,
    "latent_dim": 12,
    "depth": 2,
    "cross_heads": 2,
    "cross_dim_head": 4,
    "latent_heads": 3,
    "latent_dim_head": 5,
    "num_freq_bands": 3,
    "max_freq": 7.0,
    "max_text_length": 9,
    "queries_dim": 10,
    "feature_width": 11,
}
SIDE = 5


@pytest.fixture
def double():
    """Create parameters and inputs in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(*, width: float = 1.0, layers=PLAIN, dropout: float = 0.0, **sizes) -> Network:
    return perceiver_io(layers=layers, dropout=dropout, width=width, size=SIDE, **(SMALL | sizes))


def network(*, classes: int = 4, seed: int = 0, **arguments) -> Network:
    torch.manual_seed(seed)
    made = build(**arguments)
    made.add_head(classes)
    for parameter in made.parameters():  # norms and biases must matter too
        nn.init.normal_(parameter, std=0.3)
    return made


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE)


def texts(lengths: tuple[int, ...] = (7, 4, 1), *, longest: int = 7) -> Tensor:
    batch = torch.zeros(len(lengths), longest, 768)
    for number, length in enumerate(lengths):
        batch[number, :length] = torch.randn(length, 768)
    return batch


# The papers' network, one sample and one vector at a time.


def layer_norm(vector: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = vector - vector.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * norm.weight + norm.bias


def linear(vector: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight @ vector + (0.0 if layer.bias is None else layer.bias)


def attention(queries: list[Tensor], kv: list[Tensor], *, heads: int) -> list[Tensor]:
    """softmax(q · k / √d) v for every query, head by head."""
    inner = len(kv[0]) // 2
    width = inner // heads
    mixed = []
    for query in queries:
        parts = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            scores = [(query[at] @ pair[:inner][at]) / math.sqrt(width) for pair in kv]
            total = sum(score.exp() for score in scores)
            parts.append(
                sum(score.exp() / total * pair[inner:][at] for score, pair in zip(scores, kv, strict=True))
            )
        mixed.append(torch.cat(parts))
    return mixed


def cross_attended(queries: list[Tensor], kv: list[Tensor], block) -> list[Tensor]:
    projected = [linear(layer_norm(query, block.norm), block.q) for query in queries]
    return [linear(mixed, block.out) for mixed in attention(projected, kv, heads=block.heads)]


def self_attended(latents: list[Tensor], block) -> list[Tensor]:
    normed = [layer_norm(latent, block.norm) for latent in latents]
    queries, kv = [linear(x, block.q) for x in normed], [linear(x, block.kv) for x in normed]
    return [linear(mixed, block.out) for mixed in attention(queries, kv, heads=block.heads)]


def fed_forward(latent: Tensor, block) -> Tensor:
    hidden = linear(layer_norm(latent, block.norm), block.up)
    half = len(hidden) // 2
    gate = hidden[half:]
    gelu = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    return linear(hidden[:half] * gelu, block.down)


def added(latents: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [latent + other for latent, other in zip(latents, more, strict=True)]


def image_elements(image: Tensor) -> list[Tensor]:
    """Each pixel with its position features: sin and cos of f π x, and x, for each axis."""
    bands, nyquist = SMALL["num_freq_bands"], SMALL["max_freq"] / 2
    elements = []
    for row in range(SIDE):
        for column in range(SIDE):
            features = list(image[:, row, column])
            for index in (row, column):
                x = -1 + 2 * index / (SIDE - 1)
                frequencies = [1 + band * (nyquist - 1) / (bands - 1) for band in range(bands)]
                features += [math.sin(math.pi * f * x) for f in frequencies]
                features += [math.cos(math.pi * f * x) for f in frequencies]
                features.append(x)
            elements.append(torch.stack([torch.as_tensor(value) for value in features]))
    return elements


def text_elements(text: Tensor, positions: Tensor) -> list[Tensor]:
    return [token + positions[at] for at, token in enumerate(text) if token.abs().sum() > 0]


def keys_and_values(sample: Tensor, features: nn.Module, modality: str) -> list[Tensor]:
    read = features.inputs[modality]
    elements = image_elements(sample) if modality == "image" else text_elements(sample, read.positions)
    return [linear(layer_norm(element, read.norm), read.kv) for element in elements]


def reference_latents(sample: Tensor, features: nn.Module, modality: str) -> list[Tensor]:
    pairs = keys_and_values(sample, features, modality)
    latents = list(features.latents)
    width = 2 * SMALL["cross_heads"] * SMALL["cross_dim_head"]
    for number, (read, blocks) in enumerate(zip(features.reads, features.blocks, strict=True)):
        kv = [pair[number * width : (number + 1) * width] for pair in pairs]
        latents = added(latents, cross_attended(latents, kv, read.attention))
        latents = added(latents, [fed_forward(latent, read.feed_forward) for latent in latents])
        for block in blocks:
            latents = added(latents, self_attended(latents, block.attention))
            latents = added(latents, [fed_forward(latent, block.feed_forward) for latent in latents])
    return latents


def reference_logits(made: Network, batch: Tensor, modality: str) -> Tensor:
    rows = []
    for sample in batch:
        latents = reference_latents(sample, made.features, modality)
        mean = sum(latents) / len(latents)
        rows.append(linear(linear(mean, made.features.readout), made.classifiers[0]))
    return torch.stack(rows)


def assert_same_function(computed: Tensor, expected: Tensor, made: nn.Module) -> None:
    """Assert equal values and equal gradients of a random projection of them, to 1e-10."""
    upstream = torch.randn_like(expected)
    parameters = dict(made.named_parameters())
    gradients = [
        torch.autograd.grad((output * upstream).sum(), list(parameters.values()), allow_unused=True)
        for output in (computed, expected)
    ]
    torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-10)
    for name, left, right in zip(parameters, *gradients, strict=True):
        assert (left is None) == (right is None), name
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("layers", [PLAIN, SHARABLE], ids=["plain", "sharable"])
def test_forward_and_backward_passes_follow_the_papers_equations(double, modality, layers):
    made = network(layers=layers)
    made.modality = modality
    batch = images() if modality == "image" else texts()
    assert_same_function(made(batch), reference_logits(made, batch, modality), made)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("head_width", [4, 20], ids=["narrow heads", "wide heads"])
def test_features_equal_the_trunks_output_for_the_projected_inputs(double, modality, head_width):
    made = network(cross_dim_head=head_width)
    batch = images() if modality == "image" else texts()
    features = made.features
    kv, mask = features.project(batch, modality)
    assert kv.shape == (3, 25 if modality == "image" else 7, 4 * head_width)
    assert mask is None or mask.tolist() == (batch != 0).any(-1).tolist()
    assert_same_function(features(batch, modality=modality), features.trunk(kv, mask), features)


def test_a_perceiver_with_two_layers_follows_its_papers_equations(double):
    torch.manual_seed(0)
    sizes = {name: value for name, value in SMALL.items() if name != "queries_dim"}
    made = perceiver(layers=PLAIN, dropout=0.0, size=SIDE, **sizes | {"self_per_cross_attn": 2})
    made.add_head(4)
    made.modality = "text"
    batch = texts((3, 1), longest=3)
    assert_same_function(made(batch), reference_logits(made, batch, "text"), made)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per sample"])
def test_output_queries_are_decoded_as_in_the_paper(double, own):
    made = network()
    batch = images(2)
    queries = torch.randn(2, 4, 10) if own else torch.randn(4, 10)
    decoder = made.features.decoder
    rows = []
    for number, sample in enumerate(batch):
        latents = reference_latents(sample, made.features, "image")
        kv = [linear(layer_norm(latent, decoder.latent_norm), decoder.kv) for latent in latents]
        sample_queries = list(queries[number] if own else queries)
        rows.append(torch.stack(cross_attended(sample_queries, kv, decoder)))
    assert_same_function(made(batch, queries=queries), torch.stack(rows), made)


def test_longer_padding_changes_nothing(double):
    made = network()
    made.modality = "text"
    short = texts()
    padded = torch.cat((short, torch.zeros(3, 2, 768)), dim=1)
    torch.testing.assert_close(made(padded), made(short), rtol=1e-12, atol=1e-12)


def record_chunks(monkeypatch, made: Network, batch: Tensor, *, room: int) -> list[int]:
    """Set the bound to `room` bytes; the returned list collects the bytes of each chunk from now on."""
    monkeypatch.setattr("models.perceiver.EVALUATION_BYTES", room)
    held: list[int] = []
    features = made.features
    read = features.inputs[made.modality]
    skipped = features._skips_projection(batch, made.modality)
    (read.norm if skipped else read.kv).register_forward_hook(lambda _, __, out: held.append(out.nbytes))
    return held


@torch.no_grad()
@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("head_width", [4, 20], ids=["keys and values", "elements"])
def test_evaluation_bounds_the_keys_and_values_that_it_holds(monkeypatch, modality, head_width):
    made = network(cross_dim_head=head_width).eval()
    made.modality = modality
    batch = images(10) if modality == "image" else texts((7, 4, 1, 2, 3, 5, 7, 6, 1, 2))
    queries = torch.randn(10, 4, 10)
    logits, answers = made(batch), made(batch, queries=queries)
    width = 17 if (modality, head_width) == ("image", 20) else 4 * head_width
    sample_bytes = 4 * width * (25 if modality == "image" else 7)
    room = 3 * sample_bytes + 1
    held = record_chunks(monkeypatch, made, batch, room=room)
    torch.testing.assert_close(made(batch), logits, rtol=0, atol=1e-6)
    assert held == [3 * sample_bytes] * 3 + [sample_bytes]
    torch.testing.assert_close(made(batch, queries=queries), answers, rtol=0, atol=1e-6)
    assert len(held) == 8
    assert made(batch[:0]).shape == (0, 4)


def test_a_sample_over_the_bound_is_evaluated_alone_and_training_goes_in_one_piece(monkeypatch):
    made = network()
    batch = images(3)
    held = record_chunks(monkeypatch, made, batch, room=1)
    made(batch).sum().backward()
    made.eval()(batch).sum().backward()
    assert len(held) == 2
    with torch.no_grad():
        made(batch)
    assert len(held) == 2 + 3


@pytest.mark.parametrize("arch", ["perceiver", "perceiver_io"])
def test_500_images_of_224_pixels_stay_under_the_bound_on_a_gpu(arch):
    made = ARCHITECTURES[arch](in_channels=3, size=224, **PERCEIVER_PRESETS["tiny"]).eval()
    made.add_head(4)
    projection = made.features.inputs["image"].kv
    held = []
    projection.register_forward_hook(lambda _, __, out: held.append(out.nbytes))
    with FakeTensorMode() as mode, torch.no_grad():
        tensors = [*made.named_parameters(), *made.named_buffers()]
        state = {name: mode.from_tensor(value).to("cuda") for name, value in tensors}
        batch = torch.randn(500, 3, 224, 224, device="cuda")
        assert functional_call(made, state, batch).shape == (500, 4)
    assert max(held) <= EVALUATION_BYTES
    assert sum(held) == 500 * 224**2 * projection.out_features * 4


def test_padding_alone_gives_finite_logits_and_too_long_a_text_is_refused():
    made = network()
    made.modality = "text"
    assert made(torch.zeros(2, 3, 768)).isfinite().all()
    with pytest.raises(ValueError, match="10 elements is longer than 9 positions"):
        made(texts((10,), longest=10))


def test_dropout_acts_only_in_training():
    batch = images(8)
    without, dropping = network(), network(dropout=0.1)
    assert torch.equal(without(batch), without(batch))
    assert not torch.equal(dropping(batch), dropping(batch))
    assert torch.equal(dropping.eval()(batch), without.eval()(batch))


@pytest.mark.parametrize("clipped", [True, False])
def test_the_default_clipping_stabilises_early_training_on_texts_that_share_frequent_words(clipped):
    torch.manual_seed(1)
    made = ARCHITECTURES["perceiver_io"](in_channels=3, size=SIDE, **PERCEIVER_PRESETS["tiny"])
    made.add_head(4)
    made.modality = "text"
    table = nn.functional.pad(torch.randn(500, 384) / 2, (0, 384))  # similar to all-MiniLM-L6-v2's embeddings
    frequency = 1 / torch.arange(1, 501).expand(16, -1)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(30):
        labels = torch.randint(0, 4, (16,))
        words = torch.multinomial(frequency, 32, replacement=True)
        words = torch.where(torch.rand(16, 32) < 0.1, 496 + labels[:, None], words)
        loss, _ = train_step(
            network=made,
            method=Method(),
            optimizers=[optimizer],
            inputs=table[words],
            labels=labels,
            autocast=nullcontext(),
            clip_grad_norm=ARCHITECTURES["perceiver_io"].clip_grad_norm if clipped else None,
        )
        losses.append(loss.item())
    assert (max(losses) < 2.5 and sum(losses[-5:]) < 4) == clipped


@pytest.mark.parametrize("norm", [0.1, 1e9])
def test_gradients_are_clipped_to_the_maximum_norm(norm):
    torch.manual_seed(0)
    layer, inputs, labels = nn.Linear(5, 3).double(), torch.randn(4, 5).double(), torch.arange(4) % 3
    before = [weight.detach().clone() for weight in layer.parameters()]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(layer(inputs), labels), [*layer.parameters()])
    length = sum(float(value) ** 2 for gradient in gradients for value in gradient.flatten()) ** 0.5
    train_step(
        network=layer,
        method=Method(),
        optimizers=[torch.optim.SGD(layer.parameters(), lr=1.0)],
        inputs=inputs,
        labels=labels,
        autocast=nullcontext(),
        clip_grad_norm=norm,
    )
    for old, new, gradient in zip(before, layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - gradient * min(1.0, norm / length), rtol=1e-5, atol=0)


def test_a_third_modality_is_one_entry(monkeypatch):
    monkeypatch.setitem(MODALITIES, "audio", Modality(channels=2, axes=1, encoding="fourier", size=8))
    shared = SharedNetwork(build=lambda *, width: build(width=width, layers=SHARABLE))
    shared.begin_task("words", num_classes=3, modality="audio")
    assert shared.as_task("words")(torch.randn(4, 2, 8)).shape == (4, 3)
    assert shared.network.features.inputs["audio"].kv.weight.shape == (16, 2 + 7)


# Ownership.


def randomise(shared: SharedNetwork) -> None:
    """Change everything that the newest task may change, at random."""
    index = len(shared.tasks)
    with torch.no_grad():
        for name, parameter in shared.network.features.named_parameters():
            layer = shared.network.features.get_submodule(name.rpartition(".")[0])
            change = torch.randn_like(parameter) * 0.1
            if name.endswith(".weight") and hasattr(layer, "owner"):
                change[layer.owner != index] = 0.0
            parameter += change


def release_some(shared: SharedNetwork) -> None:
    index = len(shared.tasks)
    shared.release(
        {
            name: (layer.owner == index) & (torch.rand_like(layer.weight) < 0.5)
            for name, layer in shared.layers().items()
        }
    )


def test_earlier_tasks_keep_bit_identical_logits_through_growth_and_other_modalities():
    torch.manual_seed(0)
    shared = SharedNetwork(build=lambda *, width: build(width=width, layers=SHARABLE, dropout=0.1))
    inputs = {"image": images(8), "text": texts()}
    before: dict[str, Tensor] = {}
    widths = {
        "first": (1.0, "image"),
        "second": (1.3, "text"),
        "third": (1.3, "image"),
        "fourth": (2, "text"),
    }
    for name, (width, modality) in widths.items():
        shared.begin_task(name, num_classes=3, width=width, modality=modality)
        randomise(shared)
        release_some(shared)
        before[name] = shared.as_task(name)(inputs[modality])
        live = shared.network.eval()(inputs[modality])
        assert torch.equal(live, before[name])
        for earlier, logits in before.items():
            assert torch.equal(shared.as_task(earlier)(inputs[widths[earlier][1]]), logits), earlier
    restored = SharedNetwork.from_payload(shared.payload(), build=shared.build, source="a checkpoint")
    for name, (_, modality) in widths.items():
        assert torch.equal(restored.as_task(name)(inputs[modality]), before[name]), name
    assert restored.network.modality == "text"


def train(shared: SharedNetwork, inputs: Tensor, *, steps: int = 3) -> None:
    """Train a few CPG steps that are large enough to expose a leak."""
    optimizers = [weight_optimizer(shared)]
    if piggymasks_of(shared):
        optimizers.append(piggymask_optimizer(shared))
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.05
    method = CPG(shared=shared, weight_decay=0.1, freeze_after=steps)
    method.before_task()
    shared.network.train()
    labels = torch.arange(len(inputs)) % 3
    for _ in range(steps):
        train_step(
            network=shared.network,
            method=method,
            optimizers=optimizers,
            inputs=inputs,
            labels=labels,
            autocast=nullcontext(),
        )


def test_training_changes_only_what_the_task_owns_and_its_own_modality():
    torch.manual_seed(0)
    shared = SharedNetwork(build=lambda *, width: build(width=width, layers=SHARABLE, dropout=0.1))
    shared.begin_task("first", num_classes=3)
    train(shared, images(8))
    release_some(shared)
    shared.begin_task("second", num_classes=3, width=1.5, modality="text")
    before = {name: value.clone() for name, value in shared.network.state_dict().items()}
    owners = {name: owner.clone() for name, owner in shared.owners().items()}
    train(shared, texts())
    for name, value in shared.network.state_dict().items():
        changed = value != before[name]
        layer, _, kind = name.rpartition(".")
        if layer in owners and kind == "weight":
            assert not changed[owners[layer] == 1].any() and changed[owners[layer] == 2].any(), name
        elif name.startswith(("features.inputs.image.", "features.decoder.", "classifiers.0.")):
            assert not changed.any(), name
        elif layer in owners and kind == "piggymask":
            assert not changed[owners[layer] == 2].any() and changed[owners[layer] == 1].any(), name
        else:
            assert changed.any(), name


def test_growth_keeps_each_half_of_a_gated_unit_in_its_place():
    torch.manual_seed(0)
    shared = SharedNetwork(build=lambda *, width: build(width=width, layers=SHARABLE))
    shared.begin_task("first", num_classes=3)
    before = shared.network.features.reads[0].feed_forward.up
    weight, bias = before.weight.detach().clone(), before.bias.detach().clone()
    assert weight.shape == (96, 12)
    shared.begin_task("second", num_classes=3, width=1.5)
    up = shared.network.features.reads[0].feed_forward.up
    assert up.weight.shape == (144, 18)
    assert torch.equal(up.weight[:48, :12], weight[:48])
    assert torch.equal(up.weight[72:120, :12], weight[48:])
    assert torch.equal(up.bias[:48], bias[:48])
    assert torch.equal(up.bias[72:120], bias[48:])
    owner = torch.full((144, 18), 2, dtype=torch.uint8)
    owner[:48, :12] = owner[72:120, :12] = 1
    assert torch.equal(up.owner, owner)
    assert torch.equal(up.earlier, owner == 1)
    attention = shared.network.features.blocks[0][0].attention
    assert attention.q.weight.shape == (15, 18) and attention.kv.weight.shape == (30, 18)


def test_shares_count_only_the_groups_that_a_task_sees():
    torch.manual_seed(0)
    shared = SharedNetwork(build=lambda *, width: build(width=width, layers=SHARABLE))
    shared.begin_task("first", num_classes=3)
    alone = shared.shares("first")
    shared.begin_task("second", num_classes=3, width=2.0)
    assert shared.shares("first") == alone
    assert shared.shares("first").task_ratio == 1.0


def test_modality_inputs_and_the_decoder_are_private_to_each_task():
    shared = SharedNetwork(build=lambda *, width: build(width=width))
    private = [name for name, layer in shared.network.named_modules() if isinstance(layer, PrivateLinear)]
    assert private == [
        *("features.inputs.image.kv", "features.inputs.text.kv"),
        *("features.decoder.q", "features.decoder.out", "features.decoder.kv"),
    ]
    assert not set(private) & shared.layers().keys()
    shared.begin_task("first", num_classes=3)
    shared.snapshot()
    assert [name for name in shared.tasks[0].private if name.startswith("features.inputs.")] == [
        *("features.inputs.image.norm.weight", "features.inputs.image.norm.bias"),
        "features.inputs.image.kv.weight",
        *("features.inputs.text.positions", "features.inputs.text.norm.weight"),
        *("features.inputs.text.norm.bias", "features.inputs.text.kv.weight"),
    ]


def test_only_the_named_task_starts_from_tensors_that_arrived_for_it():
    torch.manual_seed(0)
    shared = SharedNetwork(build=lambda *, width: build(width=width, layers=SHARABLE))
    shared.begin_task("first", num_classes=3, modality="image")
    randomise(shared)
    inputs = {"image": images(4), "text": texts()}
    before = shared.as_task("first")(inputs["image"])
    donor = network(seed=5).features.inputs["text"]
    arrived = {f"features.inputs.text.{name}": value for name, value in donor.state_dict().items()}
    shared.arrivals["second"] = arrived
    shared = SharedNetwork.from_payload(shared.payload(), build=shared.build, source="a checkpoint")
    shared.begin_task("second", num_classes=3, width=1.5, modality="text")
    assert shared.arrivals == {}
    moved = shared.network.features.inputs["text"]
    for name, value in donor.state_dict().items():
        assert torch.equal(moved.state_dict()[name], value), name
    kv, mask = shared.network.features.project(inputs["text"], "text")
    assert torch.equal(kv, donor(inputs["text"])[0]) and torch.equal(mask, donor(inputs["text"])[1])
    with torch.no_grad():
        logits = shared.as_task("second")(inputs["text"])
        moved.kv.weight.mul_(1.5)
        assert not torch.equal(shared.as_task("second")(inputs["text"]), logits)
    assert torch.equal(shared.as_task("first")(inputs["image"]), before)


def test_misshapen_arrivals_and_unknown_modalities_are_refused():
    shared = SharedNetwork(build=lambda *, width: build(width=width))
    shared.arrivals["first"] = {"features.inputs.text.kv.weight": torch.zeros(3, 768)}
    with pytest.raises(
        UserError, match=r"task first does not fit .* features.inputs.text.kv.weight \(3, 768\)"
    ):
        shared.begin_task("first", num_classes=3, modality="text")
    with pytest.raises(UserError, match="task sound has audio inputs, and the network reads image and text"):
        shared.begin_task("sound", num_classes=3, modality="audio")


def test_a_checkpoint_without_modalities_is_for_images():
    shared = SharedNetwork(build=lambda *, width: build(width=width))
    shared.begin_task("first", num_classes=3, modality="text")
    payload = shared.payload()
    assert payload["shared_layer_info"]["first"]["modality"] == "text"
    del payload["shared_layer_info"]["first"]["modality"], payload["arrivals"]
    restored = SharedNetwork.from_payload(payload, build=shared.build, source="a checkpoint")
    assert restored.network.modality == restored.as_task("first").modality == "image"
