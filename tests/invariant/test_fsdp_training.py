"""Training over two ranks is training in one process: steps, masks, checkpoints, exports.

Two gloo processes hold half of every weight, gradient and moment each. Their steps are uneven: a
rank without a group, a question in several passes on one of them. Checkpoints are taken up by as
many ranks as there are. Parts that need no second process run here, on one rank.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from masters import ranks
from masters.errors import NonFiniteLossError, StageError
from masters.models.feature_cache import FeatureStore, attach_features, cacheable
from masters.models.shards import own_rows
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.teachers.thresholds import Kind, Thresholds
from masters.training.engine import Engine, Single
from masters.training.fsdp import Fsdp2
from masters.training.group_forward import group_inputs
from masters.training.groups import Group, make_rows
from masters.training.loop import LoopSettings, Trainer
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings
from masters.training.optimiser import OptimiserSettings
from masters.training.step import StepSettings
from masters.training.student import Student
from masters.training.token_scores import ScoreSettings

from .conftest import load_tiny, make_groups
from .two_ranks import on_two_ranks

RATIOS = (5000, 2000)
STEPS = 6
#: float32 sums in another order; Adam's steps are some 1e-3 each.
WEIGHTS_APART = 2e-5


class Uneven:
    """Steps of six, one, no and three questions; each rank has every second one."""

    SIZES = (6, 1, 0, 3, 5, 2)

    def __init__(self, groups: list[Group]) -> None:
        self._groups = groups

    def ratio(self, iteration: int) -> int:
        return (5000, 5000, 2000, 2000, 0, 0)[iteration]

    def groups(self, iteration: int) -> tuple[list[Group], int]:
        size = self.SIZES[iteration]
        chosen = [self._groups[(iteration + k) % len(self._groups)] for k in range(size)]
        return list(ranks.share(chosen)), 1 if ranks.rank() == 0 else 0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is to do.

    Args:
        fail: raised by the progress bar at this step, as a kill would end it.
        steps: see ``Uneven``.
        change: of the student's model as it was loaded.
    """

    folders: tuple[Path, Path]
    out: Path
    fail: int | None = None
    steps: int = STEPS
    precision: torch.dtype = torch.float32
    offload: bool = False
    poison: bool = False
    spread: bool = True
    deepspeed: bool = False
    change: Callable[[Any], None] | None = None


class KilledError(Exception):
    """Stands for the end of a process."""


def trainer_of(asked: Asked) -> Trainer:
    tiny, other = load_tiny(asked.folders[0]), load_tiny(asked.folders[1])
    if asked.change is not None:
        asked.change(tiny.model)
    groups = make_groups(tiny, other)
    engine: Engine = Single()
    if asked.spread and not asked.deepspeed:
        engine = Fsdp2(torch.device("cpu"))
    if asked.deepspeed:
        from masters.training.deepspeed_engine import Deepspeed

        engine = Deepspeed(torch.device("cpu"))
    student = Student(tiny.model, precision=asked.precision, offload=asked.offload).train()
    groups = [scored(student, group, tiny.ids.pad) for group in groups]
    if asked.poison:
        wrong = groups[1].responses[0]
        wrong = replace(wrong, reference=(math.nan,) * len(wrong.token_ids))
        groups[1] = replace(groups[1], responses=(wrong, *groups[1].responses[1:]))
    if asked.offload:
        tiny.model.gradient_checkpointing_enable({"use_reentrant": False})
    thresholds = measure_thresholds(asked.folders[1], RATIOS)
    asked.out.mkdir(parents=True, exist_ok=True)

    def progress(done: int, total: int, note: str) -> None:
        if done == asked.fail:
            raise KilledError

    return Trainer(
        student=engine.prepare_student(student),
        teacher=MaskedTeacher(engine.prepare_teacher(other.model), asked.folders[1], thresholds),
        curriculum=Uneven(groups),
        ids=tiny.ids,
        step=StepSettings(
            terms=(GrpoTerm(kl=0.1), JsdTerm()), rewards=RewardSettings(), beta=0.5,
            temperature=1.0, clip_norm=1.0, micro_batch=2, micro_batch_responses=3,
            vocabulary=tiny.ids.vocabulary,
        ),
        optimiser=OptimiserSettings(
            lr=1e-3, weight_decay=0.01, betas=(0.9, 0.95), eps=1e-4, schedule="constant", warmup=0
        ),
        loop=LoopSettings(
            start=0, stop=asked.steps, total=asked.steps, checkpoint_every=2, validate_every=3,
            workers=1,
        ),
        folder=asked.out,
        source=asked.folders[0],
        validate=lambda vlm: (sum(p.abs().sum().item() for p in vlm.parameters()), 0.0, 1.0, 1),
        progress=progress,
        group_forward="mask",
        engine=engine,
    )  # fmt: skip


@torch.no_grad()
def scored(student: Student, group: Group, pad: int) -> Group:
    """The group with the reference's log-probs, as the score stage has them."""
    rows = make_rows([group])
    inputs, row_N, column_N = group_inputs(
        student.vlm, rows, form="repeat", teacher=False, pad=pad, device="cpu"
    )
    settings = ScoreSettings(dtype=student.precision)
    _, logp_N = student(inputs, row_N, column_N, rows.targets_N, None, None, settings)
    spans = (rows.spans[u] for u in rows.row_of[0])
    pairs = zip(group.responses, spans, strict=True)
    responses = (replace(r, reference=tuple(logp_N[a:b].tolist())) for r, (a, b) in pairs)
    return replace(group, responses=tuple(responses))


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    store = dist.HashStore()  # pyright: ignore
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def trained(rank: int, asked: Asked) -> dict[str, Any]:
    trainer = trainer_of(asked)
    try:
        metrics = trainer.run()
    except KilledError:
        return {}
    mine = {n: p.to_local().numel() for n, p in trainer.student.named_parameters()}  # pyright: ignore
    moments = [
        m.to_local().untyped_storage().nbytes() // 4
        for state in trainer.optimiser.state.values()
        for m in (state["exp_avg"], state["exp_avg_sq"])
    ]
    teacher = trainer.teacher
    assert teacher is not None
    return {
        "own": sum(mine.values()),
        "all": sum(p.numel() for p in trainer.student.parameters()),
        "moments": sum(moments),
        "read": teacher.bytes_read,
        "read_by_all": metrics["mask_bytes_read"],
    }


@pytest.fixture(scope="module")
def alone(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    trainer_of(Asked(folders=folders, out=out, spread=False)).run()
    return out


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same(found: Path, expected: Path) -> None:
    """Same trajectory and final weights up to float32; the same files of the same names."""
    ours, theirs = rows(found), rows(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            if not name.startswith("time/"):
                assert mine[name] == pytest.approx(other[name], rel=2e-4, abs=2e-5), name
    for model in ("model", "best"):
        weights = load_file(found / model / "model.safetensors")
        others = load_file(expected / model / "model.safetensors")
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            assert weight.dtype == others[name].dtype
            assert (weight - others[name]).abs().max() < WEIGHTS_APART, name
        assert {f.name for f in (found / model).iterdir()} == {
            f.name for f in (expected / model).iterdir()
        }
        config = (found / model / "config.json").read_text()
        assert config == (expected / model / "config.json").read_text()
    ours, theirs = (
        [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
        for folder in (found, expected)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    check_moments(found, expected)


def check_moments(found: Path, expected: Path) -> None:
    ours, theirs = (
        torch.load(folder / "optimiser.pt", weights_only=True)["state"]
        for folder in (found, expected)
    )
    assert ours.keys() == theirs.keys()
    for i, state in ours.items():
        assert state["step"] == theirs[i]["step"] == 5  # one step has no question
        for key in ("exp_avg", "exp_avg_sq"):
            assert (state[key] - theirs[i][key]).abs().max() < WEIGHTS_APART


@pytest.mark.slow
def test_two_ranks_train_as_one_process(
    folders: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stage"
    found = on_two_ranks(trained, tmp_path, Asked(folders=folders, out=out))
    check_same(out, alone)
    for rank in found:
        # Weights and both moments: half here, the rounding of odd sizes aside.
        assert rank["own"] == pytest.approx(rank["all"] / 2, rel=0.01)
        assert rank["moments"] == pytest.approx(rank["all"], rel=0.01)
        assert rank["read"] == pytest.approx(rank["read_by_all"] / 2, rel=0.01)
    assert sum(rank["own"] for rank in found) == found[0]["all"]
    assert found[0]["read_by_all"] > 0


def resumed(rank: int, asked: Asked) -> dict[str, Any]:
    assert not (asked.out / "model").exists()
    return trained(rank, asked)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["two to one", "one to two", "two to two"])
def test_checkpoints_are_taken_up_by_any_number(
    folders: tuple[Path, Path], alone: Path, tmp_path: Path, way: str
) -> None:
    """A run that ends behind its checkpoint of step 2 goes on with as many ranks as are named."""
    before, after = way.split(" to ")
    asked = Asked(folders=folders, out=tmp_path / "stage", fail=3)
    if before == "two":
        on_two_ranks(trained, tmp_path, asked)
    else:
        with pytest.raises(KilledError):
            trainer_of(replace(asked, spread=False)).run()
    assert [path.name for path in (asked.out / "checkpoints").iterdir()] == ["step-00000002"]
    asked = replace(asked, fail=None)
    if after == "two":
        on_two_ranks(resumed, tmp_path, asked)
    else:
        trainer_of(replace(asked, spread=False)).run()
    check_same(asked.out, alone)


def test_one_rank_is_one_process(folders: tuple[Path, Path], alone: Path, tmp_path: Path) -> None:
    with one_rank():
        trained(0, Asked(folders=folders, out=tmp_path))
    check_same(tmp_path, alone)


def test_features_of_a_spread_tower_are_not_kept(folders: tuple[Path, Path]) -> None:
    """Ranks would run it unequally often, and wait for each other."""
    with one_rank():
        engine, tiny, other = Fsdp2(torch.device("cpu")), *map(load_tiny, folders)
        for model in (tiny.model, other.model):
            model.requires_grad_(False)
            assert cacheable(model) == ("features", "")
        student = engine.prepare_student(Student(tiny.model, precision=torch.float32))
        for model in (student.vlm, engine.prepare_teacher(other.model)):
            level, reason = cacheable(model)
            assert level is None and "spread over ranks" in reason
            assert attach_features(model, FeatureStore(1 << 30), "model") is None


def test_what_single_cannot_read_is_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    asked = Asked(folders=folders, out=tmp_path, fail=3)
    with one_rank():
        trained(0, asked)
    description = tmp_path / "checkpoints" / "step-00000002" / "shards" / ".metadata"
    whole = description.read_bytes()
    description.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match="the checkpoint cannot be read"):
        trainer_of(replace(asked, spread=False)).run()
    description.write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(StageError, match="which no checkpoint needs"):
        trainer_of(replace(asked, spread=False)).run()
    assert not _Runs.ran


def tied_without_eyes(vlm: Any) -> None:
    """Its head is its embedding, and its vision tower rests."""
    for config in (vlm.config, vlm.config.text_config):
        config.tie_word_embeddings = True
    vlm.get_output_embeddings().weight = vlm.get_input_embeddings().weight
    vlm.model.visual.requires_grad_(False)


def check_same_model(found: Path, expected: Path) -> None:
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight - theirs[name]).abs().max() < WEIGHTS_APART, name


def test_tied_weights_stay_tied(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """In the copies that are validated and saved, too."""
    asked = Asked(folders=folders, out=tmp_path / "spread", steps=3, change=tied_without_eyes)
    with one_rank():
        trained(0, asked)
    alone = replace(asked, out=tmp_path / "alone", spread=False)
    trainer_of(alone).run()
    check_same_model(asked.out, alone.out)
    ours, theirs = ((a.out / "validation.jsonl").read_text() for a in (asked, alone))
    assert json.loads(ours.splitlines()[-1]) == pytest.approx(
        json.loads(theirs.splitlines()[-1]), rel=1e-5
    )


class _Runs:
    ran: list[bool] = []

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _run, ()


def _run() -> None:
    _Runs.ran.append(True)


class _Largest(TorchDispatchMode):
    """The most bytes of any tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor):
                self.most = max(self.most, tensor.nbytes)
        return out


def thresholds_of(folder: Path, kind: Kind) -> Thresholds:
    temperatures = (2.0, 1.5) if kind == "softness" else None
    ratios = (5000, 2000) if kind == "softness" else RATIOS
    return measure_thresholds(folder, ratios, kind=kind, temperatures=temperatures)


def masked(rank: int, asked: tuple[Path, Kind]) -> dict[str, Any]:
    """Masks up and down on this rank's rows; the most that any operation held meanwhile."""
    folder = asked[0]
    engine, tiny = Fsdp2(torch.device("cpu")), load_tiny(folder)
    teacher = MaskedTeacher(engine.prepare_teacher(tiny.model), folder, thresholds_of(*asked))
    largest = max(p.nbytes for p in tiny.model.parameters())

    def gathers(*_: Any, **__: Any) -> Any:
        raise AssertionError("a weight is brought together")

    found: dict[str, Any] = {"largest": largest}
    watch = _Largest()
    for ratio in (2000, 5000, 2000, 0):
        with watch, patch.object(DTensor, "full_tensor", gathers):
            teacher.set_ratio(ratio)
        found[f"{ratio} {teacher.bytes_read > 0}"] = {
            name: (own_rows(p.data)[0].clone(), own_rows(p.data)[1])
            for name, p in tiny.model.named_parameters()
        }
    return found | {"most": watch.most, "read": teacher.bytes_read}


@pytest.mark.parametrize("kind", ["magnitude", "random", "softness"])
def test_masks_are_set_on_shards(folders: tuple[Path, Path], tmp_path: Path, kind: Kind) -> None:
    """Each rank's rows are those of a mask in one process, and no rank saw another's."""
    found = on_two_ranks(masked, tmp_path, (folders[1], kind))
    tiny = load_tiny(folders[1])
    teacher = MaskedTeacher(tiny.model, folders[1], thresholds_of(folders[1], kind))
    for ratio in (2000, 5000, 2000, 0):
        teacher.set_ratio(ratio)
        for rank, (name, weight) in itertools.product(found, tiny.model.named_parameters()):
            mine, first = rank[f"{ratio} {teacher.bytes_read > 0}"][name]
            assert torch.equal(mine, weight[first : first + len(mine)]), (ratio, name)
    for rank in found:
        assert 0 < rank["most"] <= rank["largest"] // 2
        assert rank["read"] == pytest.approx(teacher.bytes_read / 2, rel=0.01)
    assert sum(rank["read"] for rank in found) == teacher.bytes_read


def half_step(rank: int, asked: Asked) -> dict[str, Any]:
    trained(rank, asked)
    return {}


@pytest.mark.slow
def test_bf16_ranks_start_at_the_reference(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Layers travel in bf16; the residual stream and the trained weights stay float32."""
    asked = Asked(folders=folders, out=tmp_path / "two", steps=2, precision=torch.bfloat16)
    on_two_ranks(half_step, tmp_path, asked)
    alone = replace(asked, out=tmp_path / "one", spread=False)
    trainer_of(alone).run()
    for mine, other in zip(rows(asked.out), rows(alone.out), strict=True):
        assert mine["loss/jsd"] == pytest.approx(other["loss/jsd"], abs=2e-3)
    assert rows(asked.out)[0]["loss/kl"] < 1e-4


def poisoned(rank: int, asked: Asked) -> dict[str, Any]:
    try:
        trainer_of(asked).run()
    except NonFiniteLossError as error:
        return {"said": str(error)}
    return {"said": ""}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_ranks(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Question q1 is on rank 1; rank 0 waits for nobody and names the same questions."""
    asked = Asked(folders=folders, out=tmp_path / "stage", poison=True)
    one, other = on_two_ranks(poisoned, tmp_path, asked)
    assert one == other
    assert "step 1" in one["said"] and "the loss is nan on questions" in one["said"]
    assert all(f"q{k}" in one["said"] for k in range(6))


def test_offloaded_activations_change_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    asked = Asked(folders=folders, out=tmp_path / "kept", steps=2, spread=False)
    trainer_of(asked).run()
    packed: list[int] = []
    real = torch.autograd.graph.saved_tensors_hooks.__init__

    def counted(self: Any, pack: Any, unpack: Any) -> None:
        real(self, lambda x: (packed.append(x.numel()), pack(x))[1], unpack)

    away = replace(asked, out=tmp_path / "away", offload=True)
    with patch.object(torch.autograd.graph.saved_tensors_hooks, "__init__", counted):
        trainer_of(away).run()
    assert packed, "nothing was offloaded"
    for name, weight in load_file(asked.out / "model" / "model.safetensors").items():
        other = load_file(away.out / "model" / "model.safetensors")[name]
        assert (weight - other).abs().max() < 1e-6, name
