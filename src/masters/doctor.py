"""What this machine and installation offer, and whether the bytes of a run's models are whole."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from masters.artifacts import atomic_write_text, is_done
from masters.errors import StageError

_NEEDED = (
    "masters",
    "torch",
    "transformers",
    "numpy",
    "pyarrow",
    "pillow",
    "safetensors",
    "pydantic",
)
_OPTIONAL = (
    "torchvision", "datasets", "matplotlib", "tensorboard", "wandb", "peft", "bitsandbytes",
    "flash-attn", "vllm", "deepspeed",
)  # fmt: skip
_HASHES = "hashes.json"
_BLOCK = 2**22


def print_doctor(console: Console, verify: Path | None) -> None:
    """Prints the machine's facts; with ``verify`` hashes the models of that output folder.

    Raises:
        StageError: when a model's bytes differ from those hashed before.
    """
    table = Table("what", "found", box=None, pad_edge=False)
    for what, found in facts():
        table.add_row(what, Text(found))
    console.print(table)
    if verify is not None:
        for line in verify_models(verify):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def facts() -> list[tuple[str, str]]:
    """(what, found) about versions, processor, memory, disk and accelerators."""
    found = [("python", f"{platform.python_version()} on {platform.platform()}")]
    found += [(name, _version(name) or "missing: install it") for name in _NEEDED]
    found += [(name, _version(name) or "not installed (optional)") for name in _OPTIONAL]
    found.append(("processor", f"{platform.machine()}, {_cores()} usable cores"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found.append(("memory", f"{memory / 2**30:.1f} GiB"))
    found.append(("disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free"))
    return found + _torch_facts()


def verify_models(out: Path) -> list[str]:
    """Hashes the weights of every finished stage in ``out`` against the hashes kept beside them.

    The first call keeps them; later ones compare.

    Raises:
        StageError: when bytes differ, or there are no stages.
    """
    folders = sorted(folder for folder in (out / "stages").glob("*") if is_done(folder))
    if not folders:
        raise StageError(f"{out}: has no finished stages; expected the output folder of a run")
    lines: list[str] = []
    for folder in folders:
        now = {
            str(path.relative_to(folder)): _sha256(path)
            for path in sorted(folder.glob("*/*.safetensors"))
        }
        if not now:
            continue
        kept = folder / _HASHES
        if not kept.is_file():
            atomic_write_text(kept, json.dumps(now, indent=1) + "\n")
            lines.append(f"{folder.name}: {len(now)} files hashed for the first time")
            continue
        before = json.loads(kept.read_text(encoding="utf-8"))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            raise StageError(
                f"{folder}: {', '.join(changed)} changed since they were hashed. Delete the folder "
                f"and run again"
            )
        lines.append(f"{folder.name}: {len(now)} files as before")
    return lines


def _torch_facts() -> list[tuple[str, str]]:
    try:
        import torch
    except Exception as error:  # A broken installation is what a doctor is there to report.
        return [("torch", f"cannot be imported: {error}")]
    found = [("torch threads", str(torch.get_num_threads()))]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            size = properties.total_memory / 2**30
            found.append((f"cuda:{index}", f"{properties.name}, {size:.0f} GiB"))
    else:
        found.append(("cuda", "none"))
    found.append(("mps", "available" if torch.backends.mps.is_available() else "none"))
    if importlib.util.find_spec("torchvision"):
        try:
            import torchvision  # noqa: F401  # pyright: ignore
        except Exception as error:
            found.append(("torchvision", f"installed but broken; uninstall it: {error}"))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
