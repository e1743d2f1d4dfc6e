"""Under FSDP2 a packed step is the step of one process, and every rank sees groups the same way.

Two gloo processes: the student sharded by layers and root (its tied head is in the root's group),
the teacher as a trunk of its own and a head apart. accelerate shards nothing on a CPU and does not
say so, hence torch's own `fully_shard` and a look at what each rank holds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from masters.teachers.masked import MaskedTeacher
from masters.training import group_forward
from masters.training.group_forward import Form, first_use, make_ready
from masters.training.groups import Group
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.optimiser import OptimiserSettings, make_optimiser
from masters.training.step import StepSettings, accumulate, apply_gradient
from masters.training.student import Student

from .conftest import load_tiny, make_groups
from .lifted import lifted
from .test_packed import as_float64
from .two_ranks import on_two_ranks

FORMS: tuple[Form, ...] = ("repeat", "mask", "attention")
#: (gradient checkpointing, form, responses of one pass)
CASES = [
    *((checkpointing, form, None) for checkpointing in (False, True) for form in FORMS),
    (False, "mask", 1),
    (True, "attention", 1),
]
OPTIMISER = OptimiserSettings(
    lr=1e-2, weight_decay=0, betas=(0.9, 0.95), eps=1e-3, schedule="constant", warmup=0,
    moments="fp32",
)  # fmt: skip


class Run:
    """One process's models, in float64, and the groups of a step."""

    def __init__(self, folders: tuple[Path, Path]) -> None:
        self.tiny, other = load_tiny(folders[0]), load_tiny(folders[1])
        for model in (self.tiny.model, other.model):
            model.double()
        vlm = self.tiny.model
        vlm.get_output_embeddings().weight = vlm.get_input_embeddings().weight
        self.module = Student(vlm).train()
        self.teacher = MaskedTeacher(other.model, folders[1], None)
        self.groups = [
            replace(
                group,
                student_prompt=as_float64(group.student_prompt),
                teacher_prompt=as_float64(group.teacher_prompt) if group.teacher_prompt else None,
                responses=group.responses[:3] * 2,  # as many distinct ones in every group
            )
            for group in make_groups(self.tiny, other)
        ]

    def shard(self) -> None:
        mesh = init_device_mesh("cpu", (2,))
        vlm, teacher = self.tiny.model.model, self.teacher.model
        for layer in (*vlm.language_model.layers, *vlm.visual.blocks):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.module, mesh=mesh)
        fully_shard(teacher.model, mesh=mesh)
        fully_shard(teacher.lm_head, mesh=mesh)
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # the reducer divides by all ranks' questions

    def accumulate(
        self, groups: list[Group], form: Form, limit: int | None
    ) -> tuple[dict[str, torch.Tensor], StepSums, torch.Tensor]:
        """(gradient, sums, scores [2, N] of the response tokens as the root module gave them)."""
        for model in (self.module.vlm, self.teacher.model):
            make_ready(model, form)
        self.module.zero_grad(set_to_none=True)
        settings = StepSettings(
            terms=(GrpoTerm(kl=0.1), JsdTerm()), rewards=RewardSettings(), beta=0.5,
            temperature=1.0, clip_norm=1.0, micro_batch=2, micro_batch_responses=limit,
            vocabulary=self.tiny.ids.vocabulary, student_form=form, teacher_form=form,
        )  # fmt: skip
        sums, seen = StepSums(), []
        hook = self.module.register_forward_hook(
            lambda module, args, out: seen.append(torch.stack(out).detach())
        )
        with lifted():
            accumulate(
                self.module, self.teacher, groups, ids=self.tiny.ids, settings=settings,
                questions=len(self.groups), sums=sums,
            )  # fmt: skip
        hook.remove()
        grads = {n: p.grad for n, p in self.module.named_parameters() if p.grad is not None}
        return grads, sums, torch.cat(seen, dim=1)


def whole(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()
        for name, x in tensors.items()
    }


def held(module: torch.nn.Module) -> dict[str, list[int]]:
    """For each parameter, how many numbers there are and how many this rank has in memory."""
    return {
        name: [p.numel(), p.to_local().untyped_storage().nbytes() // p.element_size()]  # pyright: ignore
        for name, p in module.named_parameters()
    }


def steps(rank: int, folders: tuple[Path, Path]) -> dict[str, Any]:
    """Every case on this rank's half of the groups, then an applied step."""
    run = Run(folders)
    run.shard()
    found: dict[str, Any] = {
        "held": {"student": held(run.module), "teacher": held(run.teacher.model)}
    }
    half = run.groups[rank::2]
    for checkpointing, form, limit in CASES:
        if checkpointing:
            run.tiny.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            run.tiny.model.gradient_checkpointing_disable()
        grads, sums, scores = run.accumulate(half, form, limit)
        loss = torch.tensor(sums.loss["total"], dtype=torch.float64)
        dist.all_reduce(loss)
        assert all(p.grad is None for p in run.teacher.model.parameters())
        found[f"{checkpointing} {form} {limit}"] = {
            "gradient": whole(grads), "loss": loss, "scores": scores,
        }  # fmt: skip
    found["norm"] = apply_gradient(run.module, make_optimiser(run.module, OPTIMISER), clip=1.0)
    found["weights"] = whole(dict(run.module.named_parameters()))
    return found


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry of all."""
    assert one.keys() == other.keys()
    scale = max(x.abs().max() for x in one.values())
    return max(((one[n] - other[n]).abs().max() / scale).item() for n in one)


@pytest.mark.slow
def test_a_sharded_step_is_the_step_of_one_process(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ranks = on_two_ranks(steps, tmp_path, folders)
    run = Run(folders)
    halves = [run.accumulate(run.groups[rank::2], "repeat", None)[2] for rank in range(2)]
    grads, sums, _ = run.accumulate(run.groups, "repeat", None)
    gradient = whole(grads)
    for rank, found in enumerate(ranks):
        for model, parameters in found["held"].items():
            # Half of every parameter, and nothing else keeps the other half alive.
            for name, (numbers, here) in parameters.items():
                assert here == numbers // 2, (model, name)
        for checkpointing, form, limit in CASES:
            case = found[f"{checkpointing} {form} {limit}"]
            assert far(gradient, case["gradient"]) < 1e-10
            assert float(case["loss"]) == pytest.approx(sums.loss["total"], abs=1e-10)
            if limit is None:
                assert (case["scores"] - halves[rank]).abs().max() < 1e-10
    norm = apply_gradient(run.module, make_optimiser(run.module, OPTIMISER), clip=1.0)
    for found in ranks:
        assert found["norm"] == pytest.approx(norm, rel=1e-10)
        assert far(whole(dict(run.module.named_parameters())), found["weights"]) < 1e-10


def verdicts(rank: int, folders: tuple[Path, Path]) -> list[tuple[Any, ...]]:
    """What this rank decides, with groups of its own: rank 0 has nothing to share."""
    run = Run(folders)
    run.shard()
    alike = [replace(group, responses=group.responses[:1] * 4) for group in run.groups[:2]]
    mine = alike if rank == 0 else run.groups[3:6]
    models = {"student": (run.tiny.model, run.module), "teacher": (run.teacher.model, None)}
    return [
        (asked, *verdict(run, role, vlm, root, mine, asked))
        for asked in ("auto", "attention", "broken")
        for role, (vlm, root) in models.items()
    ]


def verdict(
    run: Run, role: str, vlm: Any, root: Any, groups: list[Group], asked: str
) -> tuple[Any, ...]:
    make: Any = group_forward.attention_masks

    def seeing_all(vlm: Any, inputs: dict[str, Any], layout: Any) -> Any:
        return torch.ones_like(make(vlm, inputs, layout)).tril()

    if asked == "broken" and dist.get_rank() == 1:
        group_forward.attention_masks = seeing_all
    try:
        found = first_use(
            vlm, groups, "mask" if asked == "broken" else asked, teacher=role == "teacher",
            pad=run.tiny.ids.pad, precision=torch.float32, vocabulary=run.tiny.ids.vocabulary,
            root=root,
        )  # fmt: skip
        nothing = first_use(
            vlm, [], "mask", teacher=role == "teacher", pad=run.tiny.ids.pad,
            precision=torch.float32, vocabulary=run.tiny.ids.vocabulary, root=root,
        )  # fmt: skip
    finally:
        group_forward.attention_masks = make
    assert found is not None and nothing is None
    return role, found.form, found.difference, found.reason


@pytest.mark.slow
def test_every_rank_takes_the_same_verdict(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = on_two_ranks(verdicts, tmp_path, folders)
    assert one == other
    for asked, role, form, difference, reason in one:
        if asked == "broken":
            # One rank's packed rows are wrong: none packs.
            assert form == "repeat" and difference > 1e-3 and "log-probs differ" in reason, role
        else:
            assert form == ("mask" if asked == "auto" else asked) and difference < 1e-4, role
