"""What a stage's output depends on, as one hash: torch-free and quick."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from masters.artifacts import canonical_json, fingerprint
from masters.errors import DataError, ModelError
from masters.recipe import DataSource, Judge, Prompt, ScenesSource
from masters.specs import NUMERICS, ModelRef, StageSpec

_MODEL_TEXTS = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
_NOT_CONTENT = frozenset({"name", "side"})
_LATER = frozenset({"judge", "served", "masking", "temperatures", "earned_by"})
"""Keys that came after the first stages were written: where they have their default they are left
out, and those stages keep their fingerprints."""
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_LARGEST_HEADER = 100 * 2**20
_SAMPLE = 1024
"""Bytes of a tensor that are looked at."""
_MOST_TENSORS = 8192
"""Of a file; more of them are looked at in turns."""


class Contents:
    """Fingerprints of data sets and models; each is read once.

    Args:
        count: stands in for the number of questions of files that are not here yet.

    ``absent`` collects what is not here: data files, and the weights of models whose folder holds
    only a configuration.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.absent: list[str] = []
        self._data: dict[str, tuple[str, int]] = {}
        self._models: dict[str, Any] = {}

    def data(self, source: DataSource) -> str:
        """The fingerprint of the source's questions."""
        return self._read(source)[0]

    def size(self, source: DataSource) -> int:
        """How many questions the source has."""
        return self._read(source)[1]

    def _read(self, source: DataSource) -> tuple[str, int]:
        key = canonical_json(source.model_dump(mode="json"))
        if key not in self._data:
            self._data[key] = self._open(source, key)
        return self._data[key]

    def _open(self, source: DataSource, key: str) -> tuple[str, int]:
        if not isinstance(source, ScenesSource) and not _is_there(source.path):
            if self.count is None:
                raise DataError(
                    f"{source.path}: no such file or folder; expected {source.kind} data. Correct "
                    f"the path, or set data.count to plan without the files"
                )
            self.absent.append(source.path)
            limit = source.limit if source.limit is not None else self.count
            return fingerprint({"absent": key, "count": self.count}), min(self.count, limit)
        from masters.data.sources import open_questions

        questions = open_questions(source)
        return questions.fingerprint(), len(questions)

    def model(self, path: str, revision: str | None) -> Any:
        """What identifies the model: its files' headers, or its name and revision on the hub."""
        key = f"{path}@{revision}"
        if key not in self._models:
            folder = Path(path).expanduser()
            if folder.is_dir():
                self._models[key] = {"files": self._model_files(path, folder)}
            elif HUB_NAME.match(path):
                self._models[key] = {"hub": path, "revision": revision or "main"}
            else:
                raise ModelError(
                    f"{path}: no such folder, and no name on the hub; expected a transformers "
                    f"folder or owner/name"
                )
        return self._models[key]

    def _model_files(self, path: str, folder: Path) -> dict[str, Any]:
        """Small text files by hash; weight files by size, header and a sample of every tensor.

        A folder that holds a configuration and no weights is noted as absent.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: has no config.json; expected a transformers model folder")
        found: dict[str, Any] = {}
        for name in _MODEL_TEXTS:
            if (folder / name).is_file():
                found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            self.absent.append(f"{path}/*.safetensors")
        for file in weights:
            found[file.name] = [file.stat().st_size, _weights(file)]
        return found


def _is_there(path: str) -> bool:
    """Whether a data source's path is on disk, or a pattern that something there fits."""
    found = Path(path).expanduser()
    return found.exists() or bool(glob.glob(str(found)))


def stage_fingerprint(spec: StageSpec, inputs: Mapping[str, str], contents: Contents) -> str:
    """The hex digest of everything the stage's output depends on.

    Args:
        inputs: role -> fingerprint of the input stage.
    """
    return fingerprint(
        {
            "numerics": NUMERICS[spec.kind],
            "spec": _content(spec, contents),
            "inputs": dict(inputs),
        }
    )


def _content(value: Any, contents: Contents) -> Any:
    """The spec as JSON values, with data sets and models replaced by what is in them."""
    match value:
        case ModelRef(path=str(path)):
            return contents.model(path, value.revision)
        case Prompt(image_backend="auto"):
            here = "torchvision" if importlib.util.find_spec("torchvision") else "pil"
            return _content(value.model_copy(update={"image_backend": here}), contents)
        case BaseModel() if hasattr(value, "on_bad"):
            return {"data": contents.data(value)}  # pyright: ignore[reportArgumentType]
        case Judge():
            # Who judges is known by its name; what stops a stage changes no verdict.
            return value.model_dump(mode="json", exclude={"max_missing"})
        case BaseModel():
            names = [name for name in type(value).model_fields if name not in _NOT_CONTENT]
            fields = {name: getattr(value, name) for name in names}
            usual = {name: field.default for name, field in type(value).model_fields.items()}
            said = {n: v for n, v in fields.items() if n not in _LATER or v != usual[n]}
            return {name: _content(field, contents) for name, field in said.items()}
        case tuple() | list():
            return [_content(item, contents) for item in value]
        case _:
            return value


def _weights(path: Path) -> str:
    """The hash of a safetensors file's header and of some bytes in the middle of every tensor.

    Two trainings of one model have the same header; no tensor that was trained keeps its middle.
    A page is read for each tensor, or for so many of them, spread evenly.
    """
    with open(path, "rb") as file:
        header = _header(path, file)
        digest = hashlib.sha256(header)
        spans = sorted(
            tuple(entry["data_offsets"])
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        )
        for begin, end in spans[:: len(spans) // _MOST_TENSORS + 1]:
            file.seek(8 + len(header) + max(begin, (begin + end - _SAMPLE) // 2))
            digest.update(file.read(min(_SAMPLE, end - begin)))
    return digest.hexdigest()


def _header(path: Path, file: BinaryIO) -> bytes:
    """The JSON header of a safetensors file."""
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= _LARGEST_HEADER else b""
    try:
        if len(header) != length:
            raise ValueError
        json.loads(header)
    except ValueError:
        raise ModelError(f"{path}: is cut or no safetensors file; fetch it again") from None
    return header
