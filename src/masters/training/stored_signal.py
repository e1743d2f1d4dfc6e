"""The teacher's signal on disk: what it says of stored responses, written once, read by slices.

A folder holds ``manifest.json``, the teacher's output head (``head/weight.safetensors``, where
hidden states are stored), and for each shard ``tokens/shard-N.safetensors`` and
``index/shard-N.parquet``. Each distinct token sequence of a (question, ratio) is a range of rows.
The index is written last: where it is, the shard is whole. Shape suffixes: N tokens of a shard or
of the rows asked for, D hidden, W tokens that teacher and student have in common, K kept ones.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from masters.artifacts import atomic_write_text
from masters.data.tables import SIGNALS, read_shards, shard_name, write_shard
from masters.errors import StageError
from masters.models.devices import to_device
from masters.shares import neighbour
from masters.training.checkpoints import sync
from masters.training.groups import Group, Rows
from masters.training.teacher_signal import HiddenTokens, TeacherTokens
from masters.training.topk_scores import TopTokens

MANIFEST = "manifest.json"
HEAD = Path("head") / "weight.safetensors"
#: Shards of which a map is kept open.
OPEN_SHARDS = 64

Kind = Literal["hidden", "topk"]
#: A question's id and the token ids of a response to it.
Answer = tuple[str, tuple[int, ...]]
#: The tensors of a shard.
TENSORS: Mapping[Kind, tuple[str, ...]] = {
    "hidden": ("states",),
    "topk": ("logits", "ids", "rest"),
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a stored signal is of; a step that needs another is refused.

    Args:
        kind: hidden states, or top-k logits.
        teacher: fingerprint of the model.
        thresholds: fingerprint of the mask stage; None where the teacher is whole.
        ratios: at which it was masked, per 10,000.
        precision: that it computed in: fp32 or bf16; hidden states and logits are stored in it.
        common: the ids below it are the student's too; the head has so many rows.
        banned: ids that stand for pictures in the teacher; no response has one.
        width: of the hidden states.
        k: kept tokens of each distribution; None for hidden states.
        temperature: that ``rest`` of the top-k is at; None for hidden states.
        states: where the hidden states were taken.
        head: what makes logits of them.
    """

    kind: Kind
    teacher: str
    thresholds: str | None
    ratios: tuple[int, ...]
    precision: str
    common: int
    banned: tuple[int, ...]
    width: int
    k: int | None = None
    temperature: float | None = None
    states: str = "after the final norm"
    head: str = "one product without bias, soft cap or scale"


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` whole or not at all."""
    atomic_write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a stored signal.

    Raises:
        StageError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.keys() != {field.name for field in fields(Manifest)}:
            raise ValueError(f"keys {sorted(values)}")
        lists = {name: tuple(values[name]) for name in ("ratios", "banned")}
        return Manifest(**{**values, **lists})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise StageError(
            f"{path}: no manifest of a stored teacher signal ({error}). Delete {folder} and run "
            "again"
        ) from None


def check_manifest(folder: Path, found: Manifest, **expected: Any) -> None:
    """Raises StageError where a stored signal is not of what is expected of these keys."""
    for name, wanted in expected.items():
        got = getattr(found, name)
        if name == "ratios":
            if lacking := sorted(set(wanted) - set(got)):
                raise _refusal(folder, f"has no masking ratio {lacking[0]}/10000, only {got}")
        elif got != wanted:
            raise _refusal(folder, f"has {name} {got!r}; expected {wanted!r}")


def _refusal(folder: Path, what: str) -> StageError:
    return StageError(
        f"{folder}: the stored teacher signal {what}, so it belongs to another teacher or method. "
        "Run the signal stage of this recipe"
    )


def sequence_key(question_id: str, ratio: int, token_ids: Sequence[int]) -> int:
    """64 bits that stand for a token sequence of a (question, ratio)."""
    name = f"{question_id}\0{ratio}\0".encode()
    digest = hashlib.blake2b(name + np.asarray(token_ids, dtype="<i4").tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)


# ----------------------------------------------------------------------------------------- writing


def save_head(folder: Path, head_WD: torch.Tensor) -> None:
    """Writes the teacher's output head, all that a trainer needs of it."""
    _save_tensors(folder / HEAD, {"weight": head_WD})


def index_file(folder: Path, shard: int) -> Path:
    """The file that is written last of a shard: where it is, the shard is whole."""
    return folder / "index" / shard_name(shard)


def write_signal_shard(
    folder: Path,
    shard: int,
    sequences: Sequence[tuple[str, int, tuple[int, ...]]],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Writes a shard: its tensors first, then the index that makes it whole.

    Args:
        folder: of the stage.
        shard: its number.
        sequences: (question id, ratio, token ids) of each distinct sequence.
        tensors: one row for each token of the sequences in order: ``states`` [N, D], or ``logits``
            [N, K], ``ids`` [N, K] and ``rest`` [N].
    """
    stops = np.cumsum([len(ids) for _, _, ids in sequences], dtype=np.int64)
    assert all(len(tensor) == (stops[-1] if len(stops) else 0) for tensor in tensors.values())
    _save_tensors(_tensor_file(folder, shard), tensors)
    rows = [
        {
            "question_id": question_id,
            "ratio": ratio,
            "key": sequence_key(question_id, ratio, ids),
            "shard": shard,
            "start": stop - len(ids),
            "stop": stop,
        }
        for (question_id, ratio, ids), stop in zip(sequences, stops.tolist(), strict=True)
    ]
    write_shard(index_file(folder, shard), rows, SIGNALS)


def _tensor_file(folder: Path, shard: int) -> Path:
    return folder / "tokens" / Path(shard_name(shard)).with_suffix(".safetensors")


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = neighbour(path, "partial")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


# ----------------------------------------------------------------------------------------- reading


class StepSignal:
    """What is stored of one step's responses, in memory: a ``TeacherSignal`` without a teacher.

    Args:
        parts: the stored tensors, rows of one sequence behind those of another.
        spans: for each (question id, token ids), its rows [start, stop).
        head: gives the teacher's head on a device; None where whole distributions are not stored.

    Attributes:
        seconds: what asking took so far.
    """

    def __init__(
        self,
        parts: Mapping[str, torch.Tensor],
        spans: Mapping[Answer, tuple[int, int]],
        head: Callable[[torch.device], torch.Tensor] | None,
    ) -> None:
        self.seconds = 0.0
        self._parts, self._spans, self._head = parts, spans, head

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(part.nbytes for part in self._parts.values())

    def tokens(self, rows: Rows, home: torch.device) -> TeacherTokens:
        """See ``TeacherSignal``."""
        begin = time.perf_counter()
        spans = [self._spans[answer] for answer in rows.sequences()]
        found = to_device(
            {
                name: torch.cat([part[start:stop] for start, stop in spans])
                for name, part in self._parts.items()
            },
            home,
        )
        if self._head is not None:
            known = HiddenTokens(states_ND=found["states"], head_VD=self._head(home))
        else:
            known = TopTokens(logits_NK=found["logits"], ids_NK=found["ids"], rest_N=found["rest"])
        self.seconds += time.perf_counter() - begin
        return known


class StoredSignal:
    """A stored signal, from which threads read what coming steps will ask for.

    The index takes 24 bytes a sequence in memory; tokens are read from mapped files.

    Args:
        folder: of a finished signal stage.

    Raises:
        StageError: a part is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = load_manifest(folder)
        self._folder = folder
        self._read_index()
        self._heads: dict[torch.device, torch.Tensor] = {}
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)

    def _read_index(self) -> None:
        names = ("key", "shard", "start", "stop")
        table = read_shards(self._folder / "index", SIGNALS, names)
        keys, shards, starts, stops = (table.column(name).to_numpy() for name in names)
        order = np.argsort(keys, kind="stable")
        self._keys, self._shard, self._start = keys[order], shards[order], starts[order]
        self._length = (stops - starts)[order].astype(np.int32)

    def read(self, groups: Sequence[Group], ratio: int) -> StepSignal:
        """What the teacher says of these groups at a masking ratio (per 10,000), copied to memory.

        Raises:
            StageError: nothing is stored at the ratio, or a sequence is not stored at it.
        """
        check_manifest(self._folder, self.manifest, ratios=(ratio,))
        hidden = self.manifest.kind == "hidden"
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in TENSORS[self.manifest.kind]}
        spans: dict[Answer, tuple[int, int]] = {}
        at = 0
        for answer in (
            (group.question_id, response.token_ids)
            for group in groups
            for response in group.responses
        ):
            if answer in spans:
                continue
            length = len(answer[1])
            shard, start = self._find(*answer, ratio)
            for name, part in parts.items():
                part.append(self._slice(shard, name, start, start + length))
            spans[answer] = (at, at + length)
            at += length
        read = {name: torch.cat(part) for name, part in parts.items() if part}
        return StepSignal(read, spans, self._head if hidden else None)

    def _find(self, question_id: str, ids: tuple[int, ...], ratio: int) -> tuple[int, int]:
        key = sequence_key(question_id, ratio, ids)
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key or self._length[at] != len(ids):
            raise StageError(
                f"{self._folder}: holds no teacher signal for a response of {len(ids)} tokens to "
                f"question {question_id} at masking ratio {ratio}/10000, which the plan has. "
                "A shard is missing, or the responses were made anew: delete the folder and run "
                "again"
            )
        return int(self._shard[at]), int(self._start[at])

    def _open_shard(self, shard: int) -> Any:
        return safe_open(_tensor_file(self._folder, shard), framework="pt")

    def _slice(self, shard: int, name: str, start: int, stop: int) -> torch.Tensor:
        try:
            part = cast(torch.Tensor, self._open(shard).get_slice(name)[start:stop])
        except (OSError, SafetensorError, IndexError) as error:
            raise self._damaged(_tensor_file(self._folder, shard), error) from error
        if len(part) != stop - start:
            raise self._damaged(_tensor_file(self._folder, shard), "too few tokens")
        return part

    def _head(self, home: torch.device) -> torch.Tensor:
        if home not in self._heads:
            try:
                self._heads[home] = load_file(self._folder / HEAD)["weight"].to(home)
            except (OSError, SafetensorError, KeyError) as error:
                raise self._damaged(self._folder / HEAD, error) from error
        return self._heads[home]

    def _damaged(self, path: Path, error: object) -> StageError:
        return StageError(
            f"{path}: not a whole part of a stored teacher signal ({error}). Delete {self._folder} "
            "and run again"
        )
