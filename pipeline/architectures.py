"""Turn the architecture and size flags into a builder of networks."""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.flags import MUTATIONS, given_sizes
from utils.architecture_names import FileArchitecture, digest_of
from utils.errors import UserError

if TYPE_CHECKING:
    from models import Architecture

# Kinds of layers: torch's own, and CPG's with piggymasks.
PLAIN, SHARABLE = "plain", "sharable"

# More than fit in the memory of any machine that this is meant for.
MAX_TRUNK_WEIGHTS = 10**10


@dataclass(frozen=True)
class Builder:
    """Builds networks of one architecture for one kind of input, at any width.

    Attributes:
        name: the architecture.
        file: digest of the file that defines it; None for one of this project's.
        layers: PLAIN or SHARABLE.
        sizes: all sizes of the architecture besides the width; may be empty.
        multimodal: whether its networks read several modalities, each through its own K/V projection.
        clip_grad_norm: default maximum gradient norm; None disables clipping.
    """

    name: str
    layers: str
    sizes: dict[str, Any]
    multimodal: bool
    clip_grad_norm: float | None
    make: Callable[..., Any]
    file: str | None = None

    def __call__(self, *, width: float) -> Any:
        try:
            return self.make(width=width, **self.sizes)
        except ValueError as error:
            raise UserError(f"--arch {self.name}: {error}: change the table's size or the width") from error

    @property
    def entry(self) -> dict:
        """The architecture as checkpoints record it."""
        optional = {"sizes": self.sizes, "file": self.file}
        named = {"name": str(self.name), "layers": self.layers}
        return named | {name: value for name, value in optional.items() if value}


def registry_of(layers: str) -> Mapping[str, "Architecture"]:
    """Architecture by name, built from this kind of layers."""
    from models import architectures  # slow (seconds); not needed by commands that only list tasks

    return architectures(layers)


def architecture(
    name: str, *, layers: str, in_channels: int, size: int, sizes: Mapping[str, Any] | None = None
) -> Builder:
    """The builder of architecture `name` for images of `in_channels` × `size` × `size`.

    Args:
        sizes: those given by flags (see `flags.given_sizes`).

    Raises:
        UserError: for an unknown architecture (the message lists the known ones), or for sizes that it does
            not have. The builder raises it for an unsupported image size or width.
    """
    found = _known(name, layers=layers)
    if isinstance(name, FileArchitecture):
        from pipeline.own_architecture import check_own_architecture  # slow, as in registry_of

        check_own_architecture(name, in_channels=in_channels, size=size)
    return Builder(
        name=name,
        layers=layers,
        sizes=resolved_sizes(name, layers=layers, given=sizes or {}),
        multimodal=found.multimodal,
        clip_grad_norm=found.clip_grad_norm,
        make=partial(found, in_channels=in_channels, size=size),
        file=digest_of(name),
    )


def requested_architecture(args: argparse.Namespace, *, layers: str, in_channels: int, size: int) -> Builder:
    """The builder that `--arch` and the size flags request. See `architecture`."""
    return architecture(args.arch, layers=layers, in_channels=in_channels, size=size, sizes=given_sizes(args))


def resolved_sizes(name: str, *, layers: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes of architecture `name`: its defaults, overridden by the preset, overridden by `given`.

    Raises:
        UserError: for an unknown architecture, or for sizes that it does not have or that no memory holds.
    """
    sizes = {flag: value for flag, value in given.items() if flag != "size"}
    try:
        resolved = _known(name, layers=layers).resolved_sizes(sizes, preset=given.get("size"))
    except ValueError as error:
        raise UserError(f"--arch {error}") from error
    if _trunk_weights(resolved) > MAX_TRUNK_WEIGHTS:
        raise UserError(f"--arch {name} has more than {MAX_TRUNK_WEIGHTS:.0e} weights: lower the sizes")
    return resolved


def _trunk_weights(sizes: Mapping[str, Any]) -> int:
    """Approximate number of weights of a Perceiver's trunk: four attention projections and a GEGLU per block.

    0 for an architecture without sizes.
    """
    width, blocks = sizes.get("latent_dim", 0), sizes.get("depth", 1) * sizes.get("self_per_cross_attn", 1)
    attention = 4 * width * sizes.get("latent_heads", 1) * sizes.get("latent_dim_head", 1)
    return blocks * (attention + 12 * width**2) + width * sizes.get("num_latents", 0)


def _known(name: str, *, layers: str) -> "Architecture":
    registry = registry_of(layers)
    if isinstance(name, FileArchitecture):
        if name in registry:
            raise UserError(f"--arch {name.flag}: this project has its own {name}: rename the function")
        from pipeline.own_architecture import own_architecture  # slow, as in registry_of

        return own_architecture(name).with_layers(layers)
    if name not in registry:
        raise UserError(
            f"--arch {name} is unknown: choose one of {', '.join(sorted(registry))}, or give a function in a "
            "file, my_net.py:my_net"
        )
    return registry[name]


def resolved_clip_grad_norm(asked: float | None, *, build: Builder) -> float | None:
    """The maximum gradient norm that `--clip_grad_norm` requests; None disables clipping."""
    if asked is None:
        return build.clip_grad_norm
    return None if asked in (0.0, math.inf) else asked


def resolved_mutations(asked: int | None, *, build: Builder) -> int:
    """Number of mutations of the probes, where `--max_iterations` requests `asked`.

    Raises:
        UserError: for mutations of keys and values.
    """
    if not build.multimodal:
        return MUTATIONS if asked is None else asked
    if asked:
        raise UserError(
            f"--max_iterations {asked}: networks of --arch {build.name} are compared by keys and values, "
            "which are not mutated: leave it out"
        )
    return 0


def check_transfers(build: Builder, *, transfers: bool) -> None:
    """Refuse an architecture that belongs to the other script of stage 3-2.

    Args:
        transfers: whether the script transfers the targets' K/V projections.

    Raises:
        UserError: naming the other script.
    """
    if build.multimodal and not transfers:
        raise UserError(
            f"--arch {build.name}: its targets bring their own K/V projections to their backbones: use "
            "w_backbone_MM.sh (CPG_MM_main_normal.py), where KV_TRANSFER=0 leaves them out, or run_all_MM.sh"
        )
    if transfers and not build.multimodal:
        raise UserError(
            f"--arch {build.name} has no K/V projections to transfer: use perceiver_io or perceiver, or "
            "w_backbone.sh (CPG_cifar100_main_normal.py), or run_all.sh"
        )
