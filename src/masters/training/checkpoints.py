"""Checkpoints of a training run: everything it needs to go on bit for bit, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from masters.errors import StageError
from masters.models.memory import is_out_of_memory
from masters.training.group_forward import Form
from masters.training.randomness import random_state, set_random_state

KEEP = 1
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, UnpicklingError,
    SafetensorError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: steps done, mask ratio, best validation accuracy so far.

    ``forms`` is how each model sees a group, as the first use decided it under the settings that
    ``formed`` names; empty before that.
    """

    step: int
    ratio: int
    best: float | None
    forms: Mapping[str, Form] = field(default_factory=dict)
    formed: str = ""


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, position: Position
) -> None:
    """Writes ``folder/step-NNNNNNNN`` under a temporary name, renames it, then drops older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{position.step:08d}"
    if final.exists():  # a run that went on from it and had nothing left to train
        return
    partial = folder / f"partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(_changing_tensors(model), partial / "model.safetensors")
    save_state(optimiser.state_dict(), partial / "optimiser.pt")
    save_state(random_state(), partial / "rng.pt")
    (partial / "position.json").write_text(json.dumps(vars(position)))
    for file in partial.iterdir():
        sync(file)
    os.replace(partial, final)
    sync(folder)
    drop_older(folder)


def save_state(state: Any, path: Path) -> None:
    """`torch.save` that tells a full disk as the system does: an OSError, as cause or context."""
    with open(path, "wb") as file:
        torch.save(state, file)


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> Position | None:
    """Restores the newest checkpoint in place; None when there is none.

    Raises:
        StageError: it cannot be read.
    """
    for left in folder.glob("partial-*"):
        shutil.rmtree(left)
    found = checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        weights = load_file(newest / "model.safetensors")
        model.load_state_dict(weights, strict=False)
        missing = _changing_tensors(model).keys() ^ weights.keys()
        if missing:
            raise StageError(f"{newest}: weights differ from the model's: {sorted(missing)[:3]}")
        optimiser.load_state_dict(
            torch.load(newest / "optimiser.pt", weights_only=True, map_location="cpu")
        )
        set_random_state(torch.load(newest / "rng.pt", weights_only=True))
        return Position(**json.loads((newest / "position.json").read_text()))
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise StageError(
            f"{newest}: the checkpoint cannot be read ({error}). Delete it to start the stage again"
        ) from error


def drop_older(folder: Path) -> None:
    """Removes all checkpoints but the newest ones."""
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Those that are whole, the newest last."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _changing_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State dict without frozen weights and without the second name of tied ones."""
    frozen = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    seen: set[tuple[int, int]] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in frozen:
            continue
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        tensors[name] = tensor.contiguous()
    return tensors


def sync(path: Path) -> None:
    """Has the system write a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cut_log(file: Path, step: int) -> None:
    """Drops every line of a JSON-lines log past ``step`` (and a torn last line)."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            row: Any = json.loads(line)
        except ValueError:
            break
        if row["step"] > step:
            break
        kept.append(line + "\n")
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text("".join(kept))
    os.replace(partial, file)
