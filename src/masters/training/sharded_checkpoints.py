"""Checkpoints written by several ranks, each its part, and read by any number of them.

``step-N/shards`` is torch's distributed checkpoint: weights, Adam's moments and steps by name.
Beside it lie what one process writes as well (``position.json``, ``rng.pt``) and the random state
of each further rank. A checkpoint of one process is read rank by rank, each its rows.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from masters import ranks
from masters.errors import StageError
from masters.models.checkpoint import checkpoint_tensors, read_bytes
from masters.models.memory import is_out_of_memory
from masters.models.shards import own_rows
from masters.teachers.masked import DTYPES
from masters.training.checkpoints import (
    UNREADABLE,
    Position,
    checkpoints,
    drop_older,
    save_state,
    sync,
)
from masters.training.randomness import random_state, set_random_state

SHARDS = "shards"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
#: What a distributed checkpoint's own description is made of, and nothing that runs.
_DESCRIBED = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
_NAMES = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"), ("pathlib", "Path"), ("pathlib._local", "PosixPath"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint on disk: its folder, and whether several ranks wrote it."""

    folder: Path
    sharded: bool


def newest(folder: Path) -> Found | None:
    """The newest whole checkpoint, the same on every rank; what a kill left over goes."""
    name = None
    if ranks.rank() == 0:
        for left in folder.glob("partial-*"):
            shutil.rmtree(left)
        found = checkpoints(folder)
        name = found[-1].name if found else None
    name = ranks.given_by(0, name)
    if name is None:
        return None
    return Found(folder=folder / name, sharded=(folder / name / SHARDS).is_dir())


def save_sharded_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, position: Position
) -> None:
    """Writes ``folder/step-NNNNNNNN`` as `save_checkpoint` does, each rank its own part."""
    final = folder / f"step-{position.step:08d}"
    partial = folder / f"partial-{final.name}"
    if ranks.given_by(0, final.exists()):  # a run that had nothing left to train
        return
    if ranks.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.wait_for_all()
    state = {**_weights(model), **_moments(model, optimiser)}
    writer = FileSystemWriter(partial / SHARDS, single_file_per_rank=True, sync_files=True)
    save(state, storage_writer=writer)
    save_state(random_state(), partial / _rng(ranks.rank()))
    ranks.wait_for_all()
    if ranks.rank() == 0:
        (partial / "position.json").write_text(json.dumps(vars(position)))
        for file in (*partial.iterdir(), *(partial / SHARDS).iterdir()):
            sync(file)
        os.replace(partial, final)
        sync(folder)
        drop_older(folder)
    ranks.wait_for_all()


def load_sharded_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> Position | None:
    """Takes up the newest checkpoint of any engine, on as many ranks as there are now.

    Raises:
        StageError: it cannot be read, or is of another model.
    """
    found = newest(folder)
    if found is None:
        return None
    try:
        if found.sharded:
            _load_shards(found.folder / SHARDS, model, optimiser)
        else:
            _load_weights(found.folder, model)
            load_optimiser(optimiser, found.folder / "optimiser.pt")
        own = found.folder / _rng(ranks.rank())
        if own.exists():
            set_random_state(torch.load(own, weights_only=True))
        else:  # there are more ranks now
            torch.manual_seed(torch.initial_seed() + ranks.rank())
        return Position(**json.loads((found.folder / "position.json").read_text()))
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise StageError(
            f"{found.folder}: the checkpoint cannot be read ({error}). Delete it to start the "
            "stage again"
        ) from error


def load_optimiser(optimiser: torch.optim.Optimizer, file: Path) -> None:
    """Takes up an optimiser's saved state, of each tensor the rows that are here."""
    saved = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if not any(isinstance(p, DTensor) for p in parameters):
        optimiser.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        return
    if len(parameters) != sum(len(group["params"]) for group in saved["param_groups"]):
        raise StageError(f"{file}: is of an optimiser with other weights than these")
    for i, parameter in enumerate(parameters):
        if i in saved["state"]:
            mine = _begin(optimiser, parameter)
            for key in MOMENTS:
                _copy_rows(mine[key], saved["state"][i][key])


def whole_optimiser_state(optimiser: torch.optim.Optimizer, *, here: bool) -> dict[str, Any] | None:
    """``state_dict()`` with tensors brought together one by one, on the host.

    Args:
        here: False on ranks that only give; they get None.
    """
    saved = optimiser.state_dict()
    whole: dict[Any, dict[str, Any]] = {}
    for i, moments in saved["state"].items():
        whole[i] = {}
        for key, value in moments.items():
            tensor = value.full_tensor() if isinstance(value, DTensor) else value
            if here:
                whole[i][key] = tensor.cpu()
            del tensor
    return {**saved, "state": whole} if here else None


# ------------------------------------------------------------------------------ what is in one


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name; tied weights once."""
    frozen = {n for n, p in _parameters(model) if not p.requires_grad}
    names = dict(model.named_parameters(remove_duplicate=False)).keys()
    first = {name for name, _ in _parameters(model)}
    return {
        f"weights/{name}": tensor
        for name, tensor in model.state_dict().items()
        if name not in frozen and (name in first or name not in names)
    }


def _parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return iter(model.named_parameters())


def _moments(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, *, begin: bool = False
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, parameter in _parameters(model):
        if not parameter.requires_grad or not (begin or parameter in optimiser.state):
            continue
        state = _begin(optimiser, parameter)
        found |= {f"moments/{name}/{key}": state[key] for key in MOMENTS}
    return found


def _begin(optimiser: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, Any]:
    """AdamW's state of a parameter, as before its first step where there is none."""
    state = optimiser.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


# ------------------------------------------------------------------------------------- reading


class _Reader(FileSystemReader):
    """Reads the description of a checkpoint without running what a pickle may ask for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path: Any = self.path
        with (Path(path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or f"{module}.".startswith(_DESCRIBED) or (module, name) in _NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def _load_shards(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    reader = _Reader(folder)
    held = set(reader.read_metadata().state_dict_metadata)
    weights = _weights(model)
    stored = {key for key in held if key.startswith("weights/")}
    if differ := sorted(weights.keys() ^ stored):
        raise StageError(f"{folder}: weights differ from the model's: {differ[:3]}")
    moments = {k: v for k, v in _moments(model, optimiser, begin=True).items() if k in held}
    with warnings.catch_warnings():  # that one process reads alone is meant so
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load({**weights, **moments}, storage_reader=reader, no_dist=not dist.is_initialized())


def _load_weights(folder: Path, model: torch.nn.Module) -> None:
    """The weights that one process saved, of each the rows that are here."""
    entries = checkpoint_tensors(folder)
    weights = {key.removeprefix("weights/"): value for key, value in _weights(model).items()}
    if differ := sorted(weights.keys() ^ entries.keys()):
        raise StageError(f"{folder}: weights differ from the model's: {differ[:3]}")
    with torch.no_grad():
        for name, tensor in weights.items():
            here, first = own_rows(tensor)
            entry = entries[name]
            rows = range(first, first + len(here)) if here.ndim else None
            raw = torch.from_numpy(read_bytes(entry, rows=rows))
            here.copy_(raw.view(DTYPES[entry.dtype]).view(here.shape))


def _copy_rows(mine: torch.Tensor, whole: torch.Tensor) -> None:
    here, first = own_rows(mine)
    if mine.shape != whole.shape:
        raise StageError(
            f"a moment of shape {tuple(whole.shape)} for a weight of {tuple(mine.shape)}"
        )
    here.copy_(whole[first : first + len(here)] if here.ndim else whole)


def _rng(rank: int) -> str:
    return "rng.pt" if rank == 0 else f"rng-{rank}.pt"
