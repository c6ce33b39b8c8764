"""From the flags that name an architecture and its sizes to what builds its networks."""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.flags import MUTATIONS, given_sizes
from utils.errors import UserError

# The kinds of layers: torch's own, and CPG's, which carry piggymasks.
PLAIN, SHARABLE = "plain", "sharable"


@dataclass(frozen=True)
class Builder:
    """Builds networks of one architecture for one kind of input, at any width.

    Attributes:
        name: of the architecture.
        layers: PLAIN or SHARABLE.
        sizes: all sizes that the architecture has beyond the width; empty if it has none.
        multimodal: whether its networks read several modalities, each through a K/V projection of its own.
        clip_grad_norm: default maximum of the gradient norm; None: no clipping.
    """

    name: str
    layers: str
    sizes: dict[str, Any]
    multimodal: bool
    clip_grad_norm: float | None
    make: Callable[..., Any]

    def __call__(self, *, width: float) -> Any:
        try:
            return self.make(width=width, **self.sizes)
        except ValueError as error:
            raise UserError(f"--arch {self.name}: {error}: change the table's size or the width") from error

    @property
    def entry(self) -> dict:
        """The architecture as checkpoints record it."""
        return {"name": self.name, "layers": self.layers} | ({"sizes": self.sizes} if self.sizes else {})


def registry_of(layers: str) -> Mapping[str, Callable]:
    """Architecture name → function that builds its networks with this kind of layers."""
    # PyTorch takes seconds to import, and commands that only list tasks do without.
    import models
    import packnet_models

    return {PLAIN: packnet_models.ARCHITECTURES, SHARABLE: models.ARCHITECTURES}[layers]


def architecture(
    name: str, *, layers: str, in_channels: int, size: int, sizes: Mapping[str, Any] | None = None
) -> Builder:
    """The builder of architecture `name` for images of `in_channels` × `size` × `size`.

    Args:
        sizes: the ones given by flags (see `flags.given_sizes`).

    Raises:
        UserError: for an unknown architecture (the message lists the known ones), or naming sizes that it
            does not have; the builder raises it for a size or width that it cannot take.
    """
    registry = registry_of(layers)
    resolved = resolved_sizes(registry, name, sizes or {})
    return Builder(
        name=name,
        layers=layers,
        sizes=resolved,
        multimodal=getattr(registry[name], "multimodal", False),
        clip_grad_norm=getattr(registry[name], "clip_grad_norm", None),
        make=partial(registry[name], in_channels=in_channels, size=size),
    )


def requested_architecture(args: argparse.Namespace, *, layers: str, in_channels: int, size: int) -> Builder:
    """The builder that `--arch` and the size flags request. See `architecture`."""
    return architecture(args.arch, layers=layers, in_channels=in_channels, size=size, sizes=given_sizes(args))


def resolved_sizes(registry: Mapping[str, Callable], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes of architecture `name`: its defaults, overridden by the preset, overridden by `given`.

    Raises:
        UserError: for an unknown architecture, or naming sizes that it does not have.
    """
    if name not in registry:
        raise UserError(f"--arch {name} is unknown: choose one of {', '.join(sorted(registry))}")
    defaults = getattr(registry[name], "sizes", {})
    presets = getattr(registry[name], "presets", {})
    given = dict(given)
    unknown = [f"--{flag}" for flag in given if flag not in defaults and not (flag == "size" and presets)]
    if unknown:
        raise UserError(f"--arch {name} has no {', '.join(unknown)}: leave it out")
    preset = given.pop("size", "base")
    if defaults and preset not in presets:
        raise UserError(f"--size {preset} is unknown to --arch {name}: choose one of {', '.join(presets)}")
    return {**defaults, **presets.get(preset, {}), **given}


def resolved_clip_grad_norm(asked: float | None, *, build: Builder) -> float | None:
    """The maximum gradient norm that `--clip_grad_norm` requests; None disables clipping."""
    if asked is None:
        return build.clip_grad_norm
    return None if asked in (0.0, math.inf) else asked


def resolved_mutations(asked: int | None, *, build: Builder) -> int:
    """How often the probes of networks of `build` are mutated if `--max_iterations` requests `asked`.

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
    """Refuse an architecture that the other script of stage 3-2 trains on backbones.

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
