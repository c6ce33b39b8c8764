"""Packed networks: what travels is bit-identical, small, and safe to open whoever sent it."""

import copy
import hashlib
import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from federation.packed import pack, unpack
from methods.cpg import CPG, piggymask_optimizer, weight_optimizer
from methods.footprint import packed_bytes
from methods.ownership import SharedNetwork
from models import architectures
from tests.helpers import same
from training.checkpoints import check_architecture, fingerprint, read_checkpoint, save_checkpoint
from utils.errors import UserError

TINY = {"num_latents": 4, "latent_dim": 16, "depth": 1, "latent_heads": 2, "latent_dim_head": 8}
# Architecture → its size in pixels and its other sizes. VGG and ResNet have few weights at a small width.
NETWORKS = {
    "lenet5": (32, {}, 1.0),
    "vgg16_bn_cifar100": (32, {}, 0.05),
    "resnet18": (32, {}, 0.1),
    "perceiver_io": (8, TINY, 1.0),
}


def builder(name: str) -> Callable:
    size, sizes, _ = NETWORKS[name]
    return partial(architectures("sharable")[name], in_channels=3, size=size, **sizes)


def pruned(name: str = "lenet5") -> SharedNetwork:
    """A network whose first task owns a fifth of the weights, at random, with statistics of its own."""
    torch.manual_seed(1)
    shared = SharedNetwork(build=builder(name), width=NETWORKS[name][2])
    shared.begin_task("first", num_classes=5)
    for value in shared.network.state_dict().values():
        value.add_(torch.rand(value.shape) if value.is_floating_point() else torch.randint(1, 9, value.shape))
    shared.release({layer: torch.rand(owner.shape) < 0.8 for layer, owner in shared.owners().items()})
    return shared


def payload_of(shared: SharedNetwork, name: str = "lenet5") -> dict:
    described = {
        "architecture": {"name": name, "layers": "sharable", "sizes": NETWORKS[name][1]},
        "arguments": {"seed": 1, "lr": 0.01, "clip_grad_norm": None, "classes": ["a", "ü"]},
        "metrics": {"train_accuracy": 0.1, "validation_accuracy": 1 / 3, "test_accuracy": 0.3},
        "epoch": 20,
        "format_version": 1,
    }
    return copy.deepcopy(shared.payload()) | described


def learn_second(payload: dict, name: str) -> dict:
    """Two steps of a second task on a network, grown: stage 3-2 on random images."""
    shared = SharedNetwork.from_payload(payload, build=builder(name), source=Path("payload"))
    torch.manual_seed(2)
    shared.begin_task("second", num_classes=3, width=NETWORKS[name][2] * 2**0.5)
    method = CPG(shared=shared, weight_decay=1e-4, freeze_after=1)
    optimizers = [weight_optimizer(shared), piggymask_optimizer(shared)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.01
    method.before_task()
    size = NETWORKS[name][0]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = cross_entropy(shared.network(torch.rand(4, 3, size, size)), torch.tensor([0, 1, 2, 0]))
        loss.backward()
        method.after_backward()
        for optimizer in optimizers:
            optimizer.step()
    return shared.payload()


def bare(value: object) -> object:
    """A payload's tensors without their gradients."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    return {name: bare(entry) for name, entry in value.items()} if isinstance(value, dict) else value


def forged(packed: bytes, change: Callable[[dict], object], *, body: bytes | None = None) -> bytes:
    """The same bytes with a changed header, or another body, and a checksum that matches."""
    header_size = int.from_bytes(packed[10:14], "little")
    header = json.loads(zlib.decompress(packed[22 : 22 + header_size]))
    header = change(header) or header
    return assembled(json.dumps(header).encode(), packed[22 + header_size : -32] if body is None else body)


def assembled(text: bytes, body: bytes, *, version: int = 1) -> bytes:
    compressed = zlib.compress(text)
    content = struct.pack("<8sHIQ", b"\x89PICKABK", version, len(compressed), len(body)) + compressed + body
    return content + hashlib.sha256(content).digest()


def refusal(packed: bytes, **limits: int) -> str:
    with pytest.raises(UserError) as refused:
        unpack(packed, **limits)
    message = str(refused.value)
    assert message.startswith("the packed network ") and "\n" not in message
    return message


@pytest.mark.parametrize("name", NETWORKS)
def test_a_target_on_an_unpacked_backbone_gets_the_same_weights(name: str) -> None:
    shared = pruned(name)
    payload = payload_of(shared, name)
    packed = pack(payload)
    unpacked = unpack(packed)
    assert same(payload, unpacked)
    assert fingerprint(unpacked) == fingerprint(payload)
    check_architecture(
        unpacked, architecture=name, layers="sharable", sizes=NETWORKS[name][1] or None, where="it"
    )
    # The container and the metadata are what the estimate leaves out.
    assert 0 < len(packed) - packed_bytes(shared) < 1000 + 20 * len(payload["model_state_dict"])
    second = learn_second(unpacked, name)
    assert same(bare(learn_second(payload, name)), bare(second))


def test_networks_of_several_tasks_and_transferred_tensors_stay_bit_identical() -> None:
    """Real-valued and bool piggymasks, owners in two bits, arrivals; twice, as several devices pass it on."""
    payload = bare(learn_second(payload_of(pruned()), "lenet5"))
    shared = SharedNetwork.from_payload(payload, build=builder("lenet5"), source=Path("payload"))
    shared.begin_task("third", num_classes=2)
    shared.arrivals["fourth"] = {"features.1.weight": torch.rand(9, dtype=torch.float64)}
    payload = bare(shared.payload())
    assert {str(value.dtype) for value in payload["shared_layer_info"]["second"]["piggymask"].values()} == {
        "torch.bool"
    }
    assert same(unpack(pack(unpack(pack(payload)))), payload)


def test_weights_that_nobody_owns_are_kept_where_they_are_not_zero() -> None:
    """As in published checkpoints, whose pruned weights live on until the next validation."""
    payload = payload_of(pruned())
    small = len(pack(payload))
    weight = payload["model_state_dict"]["features.9.weight"]
    weight[payload["masks"]["features.9"] == 0] = -0.0
    assert len(pack(payload)) == pytest.approx(small, abs=20)
    assert same(unpack(pack(payload)), payload)
    weight.view(-1)[(payload["masks"]["features.9"] == 0).flatten().nonzero()[0]] = 1.0
    assert len(pack(payload)) > small + 4 * 0.7 * weight.numel()
    assert same(unpack(pack(payload)), payload)


def test_a_packed_network_is_a_fraction_of_its_checkpoint(tmp_path: Path) -> None:
    payload = payload_of(pruned())
    path = tmp_path / "checkpoint-20.pth.tar"
    save_checkpoint(path, payload)
    packed = pack(read_checkpoint(path))
    assert same(unpack(packed), payload)
    dense = sum(value.nbytes for value in payload["model_state_dict"].values())
    assert len(packed) < 0.25 * dense < 0.25 * path.stat().st_size


def test_what_only_training_needs_does_not_travel() -> None:
    payload = payload_of(pruned())
    training = {"progress": {}, "notes": "private"}
    with pytest.raises(UserError, match="progress"):  # a run that has not ended
        pack(payload | training)
    assert unpack(pack(payload | {"notes": "private"})).keys() == payload.keys()


def test_only_networks_with_owners_of_finite_weights_are_packed() -> None:
    payload = payload_of(pruned())
    with pytest.raises(UserError, match="no owners"):
        pack(payload | {"masks": {}})
    with pytest.raises(UserError, match="belong to none of its 1 tasks"):
        pack(payload | {"masks": {name: mask + 1 for name, mask in payload["masks"].items()}})
    payload["model_state_dict"]["features.9.bias"][0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        pack(payload)


def test_damaged_bytes_are_refused_or_change_nothing() -> None:
    payload = payload_of(pruned())
    packed, draw = pack(payload), random.Random(1)
    for trial in range(2000):
        changed = bytearray(packed)
        at = draw.randrange(80 if trial % 4 == 0 else len(packed))  # often among the sizes and the header
        if trial % 3 == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif trial % 3 == 1:
            del changed[at : at + draw.randrange(1, len(packed))]
        else:
            changed[at:at] = draw.randbytes(draw.randrange(1, 40))
        refusal(bytes(changed))


def test_forged_headers_are_refused_in_one_line() -> None:
    """With a checksum that matches: the sender is hostile. Every value of the header, replaced in turn."""
    packed = pack(payload_of(pruned()))
    original, draw = unpack(packed), random.Random(1)
    odd = (None, True, -1, 0, 10**6, 1e308, "x\ny", [], {}, [[]], {"features.9": 1}, "\ud800")

    def replace_one(header: dict) -> None:
        place: object = header
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = draw.choice(keys)
            if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.2:
                break
            place = place[key]
        if isinstance(place, dict) and draw.random() < 0.2:
            del place[key]
        else:
            place[key] = draw.choice(odd)

    refused = 0
    for _ in range(600):
        try:
            unpacked = unpack(forged(packed, replace_one))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # metadata, or the same network with its tensors in other places
            assert unpacked.keys() <= original.keys()
    assert refused > 400


def test_lies_about_sizes_are_refused() -> None:
    payload = payload_of(pruned())
    packed = pack(payload)
    body = packed[22 + int.from_bytes(packed[10:14], "little") : -32]
    assert "truncated" in refusal(packed[:50])
    assert "does not begin as one" in refusal(b"PK" + packed)
    assert "format 2" in refusal(assembled(b"{}", b"", version=2))
    assert "its beginning says" in refusal(packed + b"x")
    assert "its beginning says" in refusal(packed[:-1])
    assert "checksum" in refusal(packed[:-1] + bytes([packed[-1] ^ 1]))
    assert "fewer values" in refusal(forged(packed, lambda header: None, body=body[:-1]))
    assert "more values" in refusal(forged(packed, lambda header: None, body=body + b"x"))
    assert "not JSON" in refusal(assembled(b'{"parts": NaN}', b""))
    assert "not JSON" in refusal(assembled(b"[" * 100_000, b""))
    assert "NaN" in refusal(forged(packed, lambda header: None, body=body[:-4] + b"\xff\xff\xff\xff"))
    assert "the limit of 100" in refusal(packed, max_bytes=100)


def test_a_small_message_that_unpacks_to_gigabytes_is_not_unpacked() -> None:
    packed = pack(payload_of(pruned()))

    def declare(header: dict) -> None:
        header["parts"] += [["float64", [2**29]], ["uint8", [1000] * 3, None, 1]]

    def repeat(header: dict) -> None:
        state = header["payload"]["model_state_dict"]
        weight = state["features.9.weight"]
        state |= {f"copy {number}": weight for number in range(30_000)}

    tracemalloc.start()
    for bomb in (forged(packed, declare), forged(packed, repeat)):
        assert "the limit of" in refusal(bomb)
    assert "larger than" in refusal(assembled(b"[" + b" " * (1 << 26) + b"]", b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 28
