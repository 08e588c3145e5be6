"""Report, as data, what a GGUF file or a checkpoint is, and what its rope scaling does to each dimension."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.model_file.checkpoint_facts import facts_of_checkpoint
from yarn_gguf.model_file.facts import ModelFacts, facts_of_file
from yarn_gguf.model_file.unpatched import unpatched_view
from yarn_gguf.model_file.warnings import warnings
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.formulas import inverse_frequencies
from yarn_gguf.rope.hf_config import SECTIONS, read_config
from yarn_gguf.rope.hf_rope import HFRope, rope_of
from yarn_gguf.rope.layers import LayerKind, layer_kinds, layer_kinds_of
from yarn_gguf.rope.names import as_json, changed_values
from yarn_gguf.rope.read import RopeModel, read_model
from yarn_gguf.rope.scaling import RopeScaling

_SAME = 1e-6  # the precision of float32, which files hold


@dataclass(frozen=True)
class Dimension:
    """One frequency: a pair of rotary dimensions.

    wavelength, scaled_wavelength: tokens for a full turn, before and after scaling.
    interpolation: from 0 (left alone) to 1 (stretched by the whole factor).
    treatment: "extrapolated", "blended" or "interpolated".
    """

    index: int
    wavelength: float
    scaled_wavelength: float
    interpolation: float
    treatment: str


@dataclass(frozen=True)
class Report:
    """The findings that `yarn-gguf inspect` shows. Contexts are in tokens.

    path: of the GGUF file, or of the checkpoint's folder. arch: a checkpoint's model_type.
    facts: about the model beside its rotary embedding. layers: by kind; empty if they are not known.
    config: the section of a checkpoint's config.json that asks for the scaling; None for a file.
    scaling, temperature, usable_context, dimensions, warnings: None or empty if the scaling is unsound.
    dynamic: None if the scaling is unsound, or if the file asks for no dynamic scaling.
    unpatched: what an unpatched llama.cpp does with the file, one line for each thing.
    warnings: what looks wrong in the file, one line for each thing.
    problem: why the scaling is unsound, else None.
    """

    path: Path
    facts: ModelFacts
    arch: str
    rope_theta: float
    rotary_dimensions: int
    context_length: int
    original_context: int
    layers: tuple[LayerKind, ...] = ()
    config: dict[str, Any] | None = None
    scaling: RopeScaling | None = None
    dynamic: DynamicScaling | None = None
    temperature: float | None = None
    usable_context: int | None = None
    dimensions: tuple[Dimension, ...] = ()
    unpatched: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report in JSON's types, without the static scaling's default values."""
        values = asdict(self) | {"path": str(self.path)}
        if self.scaling is not None:
            values["scaling"] = changed_values(self.scaling)
        if self.dynamic is not None:
            values["dynamic"] = as_json(self.dynamic)
        return values


def inspect(path: str | Path) -> Report:
    """Inspect a GGUF file, or the checkpoint in a folder (or its config.json).

    Raises as inspect_file and inspect_checkpoint do.
    """
    path = Path(path)
    is_checkpoint = path.is_dir() or path.name == "config.json"
    return inspect_checkpoint(path) if is_checkpoint else inspect_file(path)


def inspect_checkpoint(path: Path) -> Report:
    """Inspect the checkpoint in the folder `path`, or beside its config.json.

    Raises RopeScalingError for values of config.json that make no sense, GGUFError for damaged weights, and
    OSError.
    """
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    rope = rope_of(config)
    return Report(
        path=folder,
        facts=facts_of_checkpoint(folder, config),
        arch=str(config.values.get("model_type")),
        rope_theta=rope.rope_theta,
        rotary_dimensions=rope.dim,
        context_length=rope.max_position_embeddings,
        original_context=rope.original_context,
        layers=tuple(layer_kinds_of(config, rope)),
        config={name: config.values[name] for name in SECTIONS if config.values.get(name)},
        scaling=rope.scaling,
        dynamic=rope.dynamic,
        temperature=rope.scaling.temperature(),
        usable_context=rope.scaling.extended_context or rope.max_position_embeddings,
        dimensions=_dimensions(rope, rope.scaling),
    )


def inspect_file(path: str | Path) -> Report:
    """Inspect the GGUF file at `path`.

    Raises GGUFError, OSError, and RopeScalingError for a model without rotary embedding.
    """
    model = read_model(path)
    report = Report(
        path=model.path,
        facts=facts_of_file(model.header),
        arch=model.arch,
        rope_theta=model.rope_theta,
        rotary_dimensions=model.dim,
        context_length=model.context_length,
        original_context=model.original_context,
        layers=tuple(layer_kinds(model)),
        unpatched=tuple(unpatched_view(model)),
    )
    try:
        return replace(
            report,
            scaling=model.scaling,
            dynamic=model.dynamic,
            temperature=model.scaling.temperature(),
            usable_context=model.usable_context,
            dimensions=_dimensions(model, model.scaling),
            warnings=tuple(warnings(model)),
        )
    except RopeScalingError as error:
        return replace(report, problem=str(error))


# ----------------------------------------------------------------------------------------------


def _dimensions(model: RopeModel | HFRope, scaling: RopeScaling) -> tuple[Dimension, ...]:
    plain = inverse_frequencies(model.dim, model.rope_theta)
    scaled = scaling.frequencies(model.dim, model.rope_theta).inv_freq
    interpolation = scaling.interpolation(model.dim, model.rope_theta)
    waves, scaled_waves = 2 * math.pi / plain, 2 * math.pi / scaled
    rows = zip(waves.tolist(), scaled_waves.tolist(), interpolation.tolist(), strict=True)
    return tuple(Dimension(index, *row, _treatment(row[-1])) for index, row in enumerate(rows))


def _treatment(interpolation: float) -> str:
    if interpolation <= _SAME:
        return "extrapolated"
    return "interpolated" if interpolation >= 1 - _SAME else "blended"
