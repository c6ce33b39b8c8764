"""Small networks and the stages' recipes for them."""

from collections.abc import Callable
from functools import partial

from methods.ownership import SharedNetwork
from models import architectures
from models.network import Network
from pipeline.recipe import (
    GradualPruningRecipe,
    OnBackboneRecipe,
    PackNetPruningRecipe,
    RunRecipe,
    SamplesRecipe,
    ScratchRecipe,
    StageRecipe,
)

SIZE = 32
# All architectures are small at this width, except the Perceivers, which have sizes of their own.
WIDTH = 0.25
_TINY = {"num_latents": 4, "latent_dim": 16, "latent_heads": 2, "latent_dim_head": 8, "cross_dim_head": 8}


def builder(name: str, *, layers: str = "sharable") -> Callable[..., Network]:
    """Builds small networks of an architecture."""
    architecture = architectures(layers)[name]
    sizes = {"depth": 2, **_TINY} if architecture.multimodal else {}
    return partial(architecture, size=SIZE, **sizes)


def first_task(build: Callable[..., Network], *, modality: str = "image") -> SharedNetwork:
    """A network with one task."""
    shared = SharedNetwork(build=build, width=WIDTH if not build.keywords.get("depth") else 1.0)
    shared.begin_task("first", num_classes=3, modality=modality)
    return shared


def grown_task(shared: SharedNetwork, *, modality: str = "image") -> SharedNetwork:
    """The network with a second task, at twice the weights, half of the first one's pruned."""
    shared.release({name: layer.weight < 0 for name, layer in shared.layers().items()})
    shared.begin_task("second", num_classes=4, width=shared.width * 2**0.5, modality=modality)
    return shared


def recipe(kind: type[StageRecipe], *, precision: str = "fp32", epochs: int = 10) -> StageRecipe:
    """A stage's recipe."""
    run = RunRecipe(
        arch="lenet5",
        sizes={},
        seed=1,
        protocol="published",
        precision=precision,
        nondeterministic=False,
        batch_size=4,
        weight_decay=0.1,
        clip_grad_norm=1.0,
    )
    samples = SamplesRecipe(config="digits", task="zero_one", data="")
    return kind(run=run, samples=samples, epochs=epochs, lr=0.1, **_SETTINGS[kind])


_SETTINGS = {
    ScratchRecipe: {"width_multiplier": 1.0, "pretrained": None},
    OnBackboneRecipe: {"width_multiplier": 2.0, "lr_mask": 0.1, "backbone": "first"},
    PackNetPruningRecipe: {"sparsity": 0.5, "parent": ""},
    GradualPruningRecipe: {
        "initial_sparsity": 0.0,
        "final_sparsity": 0.5,
        "pruning_interval": 1,
        "pruning_frequency": 1,
        "parent": "",
    },
}
