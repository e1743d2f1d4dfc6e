"""Low-rank adapters through the library peft; the one file that imports it.

The adapters are put into the transformers model in place, so that it stays the class it is. They
are merged on the way to disk only: what is in memory never changes by saving it. Everything is
float32: the frozen weights too, so that what a phase learned is not rounded away when the next one
begins, and the reference is scored by the arithmetic that trains.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from masters.errors import ModelError, StageError
from masters.models.trainable import LoraSettings

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"


def library() -> Any:
    """The package peft; raises ModelError where it is not installed."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ModelError(
            f"models.student.lora needs the package peft, which cannot be imported ({error}); "
            "pip install 'masters[lora]', or set models.student.lora=null"
        ) from error


def attach(model: Any, layers: Sequence[str], settings: LoraSettings) -> None:
    """Freezes the model and gives these Linear layers adapters that change nothing yet (B is 0)."""
    peft = library()
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(layers),
        bias="none",
    )
    # peft draws A on the host; its own generator, so that nothing before it moves the draw.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(settings.seed)
    try:
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    finally:
        torch.set_rng_state(before)
    got = {name for name, _ in _adapted(model)}
    if got != set(layers):
        raise ModelError(
            f"peft {peft.__version__} gave adapters to {len(got)} layers; expected "
            f"{len(layers)} (differing: {', '.join(sorted(got ^ set(layers))[:3])})"
        )


def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors with W + alpha / rank * B A in W's place: no adapters, ordinary names."""
    layers = dict(_adapted(model))
    merged: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            owner, _, key = name.partition(".base_layer.")
            if not key:
                if ".lora_" not in name:
                    merged[name] = tensor
            elif key == "weight":
                delta = layers[owner].get_delta_weight(ADAPTER)
                merged[f"{owner}.weight"] = (tensor + delta.to(tensor)).cpu()
            else:
                merged[f"{owner}.{key}"] = tensor
    return merged


def save_adapter(model: Any, folder: Path) -> None:
    """The adapter in peft's format; it belongs to the student that the phase began with."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.{side}.weight": getattr(layer, side)[ADAPTER].weight.detach()
        for name, layer in _adapted(model)
        for side in ("lora_A", "lora_B")
    }
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    config = model.peft_config[ADAPTER].to_dict()
    plain = {key: _plain(value) for key, value in config.items()} | {"inference_mode": True}
    text = json.dumps(plain, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n")


def go_on_with(model: Any, folder: Path) -> None:
    """Takes up the adapters of an earlier stage of the phase, whose ``model/`` has them merged.

    They are taken out of the weights again, so that the same A and B are trained on and the
    optimiser's moments stay theirs.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
        with torch.no_grad():
            for name, layer in _adapted(model):
                for side in ("lora_A", "lora_B"):
                    weight = getattr(layer, side)[ADAPTER].weight
                    weight.copy_(tensors[f"base_model.model.{name}.{side}.weight"])
                base = layer.base_layer.weight
                base.sub_(layer.get_delta_weight(ADAPTER).to(base))
    except (OSError, KeyError, RuntimeError) as error:
        raise StageError(
            f"{folder}: the adapter of the stage before cannot be taken up ({error}); expected "
            "one of the same rank and layers. Delete that stage's folder and run again"
        ) from error


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    layer_type = library().tuners.lora.LoraLayer
    return ((name, m) for name, m in model.named_modules() if isinstance(m, layer_type))


def _plain(value: Any) -> Any:
    """A value of the configuration as JSON, sets in order: the same file every time."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return getattr(value, "value", value)
