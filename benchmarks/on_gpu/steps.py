"""A training step of the 2B student under a teacher, in every way to see a group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from stepping import counts
from stepping.clock import repeated
from stepping.shapes import Case
from stepping.ways import TERMS

from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form, first_use, make_ready
from masters.training.groups import Group, make_rows
from masters.training.objective import RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate, apply_gradient
from masters.training.stored_signal import (
    Manifest,
    StoredSignal,
    save_head,
    save_manifest,
    write_signal_shard,
)
from masters.training.student import Student
from masters.training.teacher_signal import TeacherSignal, teacher_states
from masters.training.topk_scores import top_tokens
from on_gpu.running import Found, SkippedError, need, release, told
from on_gpu.setting import FROZEN, TRAINED, Setting, checkpointing, scored_question

FORMS: tuple[Form, ...] = ("repeat", "mask", "attention")
#: Activations and what chunks of logits take, roughly.
BESIDE = 12e9
KEPT = 64


class Steps:
    """A student that takes steps.

    Args:
        setting: where.
        peak: FLOP/s of bf16 matrix products there; None where they were not measured.
    """

    def __init__(self, setting: Setting, peak: float | None) -> None:
        self.setting, self._peak = setting, peak
        self.student, self._optimiser = setting.student()
        self._update()  # from here on its moments are in memory, as in every step but the first

    def see(self, form: Form, *others: Any) -> None:
        """Has student and teacher take what this form gives them; others run on plain sdpa."""
        for vlm in (self.student.vlm, *others):
            vlm.set_attn_implementation({"text_config": "sdpa"})
            make_ready(vlm, form)

    def gradient(
        self,
        group: Group,
        teacher: MaskedTeacher | TeacherSignal,
        form: Form,
        *,
        limit: int | None = None,
    ) -> None:
        """Of one question; leaves it in the student."""
        settings = StepSettings(
            terms=TERMS, rewards=RewardSettings(), beta=0.5, temperature=1.0, clip_norm=1.0,
            micro_batch=1, vocabulary=self.setting.vocabulary, student_form=form,
            teacher_form=form, micro_batch_responses=limit,
        )  # fmt: skip
        accumulate(
            self.student, teacher, [group], ids=self.setting.ids, settings=settings, questions=1,
            sums=StepSums(),
        )  # fmt: skip

    def clear(self) -> None:
        """Forgets the gradient."""
        self.student.zero_grad(set_to_none=True)

    def measured(
        self,
        case: Case,
        teacher: MaskedTeacher | TeacherSignal,
        form: Form,
        flops: float,
    ) -> dict[str, Any]:
        """Seconds of a question's gradient and of the update, tokens/s, MFU, peak memory.

        Args:
            flops: counted for the gradient, whatever is computed twice.
        """
        setting, group = self.setting, scored_question(case)
        vlms = (teacher.model,) if isinstance(teacher, MaskedTeacher) else ()
        self.see(form, *vlms)
        release()
        on_gpu = setting.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        work = repeated(
            setting.device, lambda: self.gradient(group, teacher, form), setting.repeats
        )
        update = repeated(setting.device, self._update, 1)
        taken = median(work)
        return {
            "gradient_seconds": [taken, min(work), max(work)],
            "update_seconds": update[0],
            "response_tokens_per_second": case.group * case.response / taken,
            "tera_operations": flops / 1e12,
            "mfu": flops / taken / self._peak if self._peak else None,
            "peak_gib": torch.cuda.max_memory_allocated(setting.device) / 2**30 if on_gpu else None,
        }

    def _update(self) -> None:
        for weight in self.student.parameters():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        apply_gradient(self.student, self._optimiser, 1.0)


def exactness(setting: Setting, steps: Callable[[], Steps]) -> Found:
    """What the first batch would decide in bf16, and how far gradients of the forms lie apart."""
    need(setting.device, (TRAINED + 12) * setting.weights("2B") + BESIDE, "2B, trained", held=True)
    made = steps()
    yield from _verdicts(setting, made.student.vlm)
    yield from _gradients_apart(setting, made, scored_question(setting.cases["4:1"]))


def _verdicts(setting: Setting, vlm: Any) -> Found:
    """Of the first use of each packed form."""
    groups = [scored_question(setting.cases["4:1"], seed=seed) for seed in (0, 1)]
    for form in FORMS[1:]:
        vlm.set_attn_implementation({"text_config": "sdpa"})
        verdict = first_use(
            vlm, groups, form, teacher=False, pad=setting.ids.pad, precision=setting.precision,
            vocabulary=setting.vocabulary,
        )  # fmt: skip
        assert verdict is not None
        yield ("first_use", form), asdict(verdict)


def _gradients_apart(setting: Setting, made: Steps, group: Group) -> Found:
    """||g - g_repeat|| / ||g_repeat||; repeated rows in two passes are the measure."""
    teacher = MaskedTeacher(setting.model("2B", setting.precision), Path(), None)

    def taken(form: Form, limit: int | None = None) -> list[torch.Tensor]:
        made.clear()
        made.see(form, teacher.model)
        made.gradient(group, teacher, form, limit=limit)
        return [p.grad for p in made.student.parameters() if p.grad is not None]

    exact = taken("repeat")
    size = _norm(exact)
    others: list[tuple[str, Form, int | None]] = [
        ("repeat in two passes", "repeat", -(-len(group.responses) // 2)),
        ("mask", "mask", None),
        ("attention", "attention", None),
    ]
    for name, form, limit in others:
        try:
            other = taken(form, limit)
            apart = sum(
                torch.linalg.vector_norm(a - b).double() ** 2
                for a, b in zip(exact, other, strict=True)
            )
            value: Any = float(apart) ** 0.5 / size
        except SkippedError:
            raise
        except Exception as error:  # a compiler's may be of any class
            value = {"skipped": told(error)}
        yield ("gradient_apart", name), value
    made.clear()


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(sum(torch.linalg.vector_norm(x).double() ** 2 for x in tensors)) ** 0.5


def steps_under(setting: Setting, steps: Callable[[], Steps], name: str) -> Found:
    """Steps under a live teacher in every form, and without it under its stored signal.

    Args:
        setting: where.
        steps: the student's, made when it is wanted.
        name: of the teacher.
    """
    student, teacher_weights = setting.weights("2B"), setting.weights(name)
    size = TRAINED * student + FROZEN * teacher_weights + BESIDE
    need(setting.device, size, f"2B, trained, beside {name}", held=True)
    made = steps()
    teacher = MaskedTeacher(setting.model(name, setting.precision), Path(), None)
    yield from _verdicts(setting, teacher.model)
    stored: dict[str, tuple[Path, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for ratio, case in setting.cases.items():
            yield (ratio, "counted"), _counted(made.student, teacher.model, case)
            yield from _live(made, teacher, ratio, case)
            flops = counts.training(made.student.vlm, teacher.model, case).packed
            stored[ratio] = Path(scratch, ratio.replace(":", "-")), flops
            _store(setting, teacher, scored_question(case), stored[ratio][0])
        del teacher
        release()
        for ratio, (folder, flops) in stored.items():
            for kind in ("hidden", "topk"):
                case = setting.cases[ratio]
                signal = StoredSignal(folder / kind).read([scored_question(case)], 0)

                def under(form: Form, case: Case = case) -> dict[str, Any]:
                    return made.measured(case, signal, form, flops)  # noqa: B023

                for form in FORMS[1:]:
                    yield (ratio, f"{form}, stored {kind}"), _tried(made, lambda f=form: under(f))
                if kind == "hidden":
                    checkpointing(made.student.vlm, False)
                    found = _tried(made, lambda: under("attention"))
                    yield (ratio, "attention, stored hidden, layers kept"), found
                    checkpointing(made.student.vlm, True)


def _counted(student: Student, teacher: Any, case: Case) -> dict[str, float]:
    trained = counts.training(student.vlm, teacher, case)
    taught = counts.trunk_and_tower(teacher, case)
    whole = (trained.repeated + taught.repeated) / (trained.packed + taught.packed)
    return {
        "limit_tokens": case.token_limit, "limit_student": trained.limit,
        "limit_teacher": taught.limit, "limit_live": whole,
    }  # fmt: skip


def _live(made: Steps, teacher: MaskedTeacher, ratio: str, case: Case) -> Found:
    trained = counts.training(made.student.vlm, teacher.model, case)
    taught = counts.trunk_and_tower(teacher.model, case)
    rows = make_rows([scored_question(case)])
    device = made.setting.device

    def both(form: Form) -> dict[str, Any]:
        kind = "repeated" if form == "repeat" else "packed"
        flops = getattr(trained, kind) + getattr(taught, kind)
        found = made.measured(case, teacher, form, flops)
        alone = repeated(
            device,
            lambda: teacher_states(
                teacher, rows, made.setting.ids, made.setting.precision, device, form
            ),
            made.setting.repeats,
        )
        return {**found, "teacher_seconds": median(alone)}

    for form in FORMS:
        yield (ratio, f"{form}, live"), _tried(made, lambda form=form: both(form))


def _tried(made: Steps, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or why it was not: one way that fails leaves the others."""
    try:
        return measure()
    except SkippedError:
        raise
    except Exception as error:  # a compiler's may be of any class
        found = {"skipped": told(error)}
    made.clear()
    release()
    return found


def _store(setting: Setting, teacher: MaskedTeacher, group: Group, folder: Path) -> None:
    """Both kinds of stored signal of a question, as a signal stage writes them."""
    rows = make_rows([group])
    teacher.model.set_attn_implementation({"text_config": "sdpa"})
    states_ND = teacher_states(
        teacher, rows, setting.ids, setting.precision, setting.device, "mask"
    )
    head_VD = teacher.model.get_output_embeddings().weight
    top = top_tokens(states_ND, head_VD, k=KEPT, common=setting.vocabulary)
    sequences = [(question, 0, ids) for question, ids in rows.sequences()]
    kinds: dict[str, dict[str, torch.Tensor]] = {
        "hidden": {"states": states_ND},
        "topk": {"logits": top.logits_NK, "ids": top.ids_NK, "rest": top.rest_N},
    }
    for kind, tensors in kinds.items():
        hidden = kind == "hidden"
        manifest = Manifest(
            kind="hidden" if hidden else "topk", teacher="random", thresholds=None, ratios=(0,),
            precision="bf16", common=setting.vocabulary, banned=(), width=states_ND.shape[1],
            k=None if hidden else KEPT, temperature=None if hidden else 1.0,
        )  # fmt: skip
        if hidden:
            save_head(folder / kind, head_VD)
        write_signal_shard(folder / kind, 0, sequences, tensors)
        save_manifest(folder / kind, manifest)
