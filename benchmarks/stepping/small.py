"""The demo's step: models of a million parameters or fewer, answers of a word or two."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters.data.scenes import SceneQuestions, scene_vocabulary
from masters.models.encode import EncodedPrompt, PromptText, encode_prompt
from masters.models.load import TokenIds, load_model, load_processor, token_ids
from masters.models.tiny import write_tiny_model
from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form, choose_form, make_ready
from masters.training.groups import Group, Response
from masters.training.objective import RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate
from masters.training.student import Student
from stepping.clock import Times, spread
from stepping.ways import TERMS

FORMS: tuple[Form, ...] = ("repeat", "mask", "attention")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's student and teacher, and prompts of 16 scenes."""

    student: Student
    teacher: MaskedTeacher
    ids: TokenIds
    prompts: list[EncodedPrompt]

    def step(self, groups: list[Group], form: Form) -> None:
        """The gradient of a step with a live teacher."""
        settings = StepSettings(
            terms=TERMS, rewards=RewardSettings(), beta=0.5, temperature=1.0, clip_norm=1.0,
            micro_batch=len(groups), vocabulary=self.ids.vocabulary, student_form=form,
            teacher_form=form,
        )  # fmt: skip
        accumulate(
            self.student, self.teacher, groups, ids=self.ids, settings=settings,
            questions=len(groups), sums=StepSums(),
        )  # fmt: skip

    def see_groups(self, form: Form) -> None:
        """Has both models take what this form gives them."""
        for model in (self.student.vlm, self.teacher.model):
            model.set_attn_implementation({"text_config": "sdpa"})
            make_ready(model, form)


def open_demo() -> Demo:
    """With random weights, which cost what taught ones cost."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = Path(scratch, "student"), Path(scratch, "teacher")
        texts = list(scene_vocabulary())
        write_tiny_model(folders[0], "qwen3_vl_250k", seed=1, texts=texts)
        write_tiny_model(folders[1], "qwen3_vl_1m", seed=2, texts=texts)
        vlm, teacher = (load_model(str(folder)) for folder in folders)
        processor: Any = load_processor(str(folders[0]))
    scenes = SceneQuestions(count=16, seed=5)
    prompts = [encode_prompt(processor, q, scenes.open_images(q), PromptText()) for q in scenes]
    return Demo(
        student=Student(vlm).train(), teacher=MaskedTeacher(teacher, Path(), None),
        ids=token_ids(vlm, processor), prompts=prompts,
    )  # fmt: skip


def short_groups(demo: Demo, distinct: int) -> list[Group]:
    """Eight responses a question, so many of them distinct, of one to three tokens and the end."""
    draw = random.Random(distinct)

    def response(j: int) -> Response:
        words = [draw.randrange(100, demo.ids.vocabulary) for _ in range(draw.randint(1, 3))]
        return Response(
            token_ids=(*words, demo.ids.end[0]),
            source="teacher" if j % 2 else "student",
            accuracy=float(j % 2),
            reference=(-3.0,) * (len(words) + 1),
        )

    groups = []
    for i, prompt in enumerate(demo.prompts):
        pool = [response(j) for j in range(distinct)]
        responses = tuple(pool[j % distinct] for j in range(8))
        groups.append(
            Group(
                question_id=str(i), student_prompt=prompt, teacher_prompt=prompt,
                responses=responses,
            )
        )  # fmt: skip
    return groups


def measure_small(rounds: int, counts: tuple[int, ...] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    """Milliseconds of a step by distinct responses of a question, and what ``auto`` chooses."""
    demo = open_demo()
    rows = []
    for distinct in counts:
        groups, times = short_groups(demo, distinct), Times()
        for repeat in range(rounds + 1):
            for form in FORMS:
                demo.see_groups(form)
                demo.student.zero_grad(set_to_none=True)
                times(form if repeat else "warming up", lambda: demo.step(groups, form))  # noqa: B023
        longest = max(
            len(g.student_prompt.ids) + sum(map(len, {r.token_ids for r in g.responses}))
            for g in groups
        )
        # One response a question has nothing to share, and `first_use` repeats it.
        auto = choose_form(demo.student.vlm, "auto", tokens=longest)[0]
        spent = {form: [1e3 * s for s in times.seconds[form]] for form in FORMS}
        rows.append(
            {
                "distinct": distinct,
                "row_tokens": longest,
                "auto": "repeat" if distinct == 1 else auto,
                "milliseconds": {form: spread(values) for form, values in spent.items()},
            }
        )
    return rows
