"""One teacher under many masks: answers, entropy and divergence over the same questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from masters.calibration.recommendation import Measured
from masters.calibration.tokens import TokenMeasures, token_measures
from masters.evaluation.statistics import t_interval
from masters.generation.engine import TransformersEngine
from masters.models.load import DTYPES
from masters.ratios import ratio_text
from masters.recipe import AccuracyRule, Runtime
from masters.rewards.verifiers import verify
from masters.stages.opening import OpenedModel, Prompts, greedy_answers
from masters.teachers.masked import MaskedTeacher
from masters.teachers.thresholds import Thresholds
from masters.training.groups import TEACHER, Group, Response, Rows, make_rows
from masters.training.teacher_signal import teacher_states

CHUNK = 512

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the teacher is asked and judged.

    Args:
        indices: the sample, as places in the data set.
        max_new_tokens: of an answer.
        rule: when it counts as right.
        precision: compute dtype, ``fp32`` or ``bf16``.
        runtime: batch sizes.
    """

    indices: tuple[int, ...]
    max_new_tokens: int
    rule: AccuracyRule
    precision: str
    runtime: Runtime


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Greedy answers to the sample, in its order."""

    token_ids: tuple[tuple[int, ...], ...]
    correct: tuple[bool, ...]


class Measuring:
    """Measures one teacher in memory, whole first and then under masks.

    The fixed text that entropy and divergence are measured on are the whole teacher's own greedy
    answers: what it would say, and the same for every mask. Its hidden states at their tokens are
    kept (in compute precision, on the CPU); distributions are made from them in chunks.

    Args:
        opened: the unmasked teacher.
        thresholds: at every ratio that will be asked for.
        prompts: its questions.
        asking: which of them, and how.
        progress: called with questions done, questions in all, note.
    """

    def __init__(
        self,
        opened: OpenedModel,
        thresholds: Thresholds,
        prompts: Prompts,
        asking: Asking,
        progress: Progress,
    ) -> None:
        self._opened = opened
        self._thresholds = thresholds
        self._prompts = prompts
        self._asking = asking
        self.progress = progress
        self._teacher = MaskedTeacher(opened.model, opened.folder, thresholds)
        self._precision = DTYPES[asking.precision]
        self._head_VD = opened.model.get_output_embeddings().weight.detach().to(self._precision)
        self._engine = TransformersEngine(
            opened.model,
            opened.processor,
            opened.ids,
            batch_rows=asking.runtime.generation_batch,
            precision=self._precision,
        )
        self._whole: list[torch.Tensor] = []
        self.answers = Answers(token_ids=(), correct=())

    @property
    def model(self) -> Any:
        """The teacher."""
        return self._opened.model

    def unmasked(self, known: Answers | None = None) -> Measured:
        """The whole teacher: the answers everything else is compared with.

        Args:
            known: its answers, where an earlier run kept them.
        """
        begin = time.perf_counter()
        self._teacher.set_ratio(0)
        self.answers = known or self._ask(range(len(self._asking.indices)), "unmasked")
        self._whole = [self._states(self._teacher, rows) for rows in self._batches()]
        row, _ = self._compared(self._teacher, "unmasked")
        return replace(row, correct=self.answers.correct, seconds=time.perf_counter() - begin)

    def masked(self, ratio: int) -> Measured:
        """Every layer of the thresholds masked at ``ratio``; each question is answered anew."""
        begin = time.perf_counter()
        self._teacher.set_ratio(ratio)
        what = f"ratio {ratio_text(ratio)}"
        row, _ = self._compared(self._teacher, what)
        answers = self._ask(range(len(self._asking.indices)), what)
        return replace(row, correct=answers.correct, seconds=time.perf_counter() - begin)

    def only(self, group: str, layers: Sequence[str], ratio: int) -> Measured:
        """These layers masked at ``ratio``, the others whole.

        Only questions whose greedy answer changes are answered anew. Which do follows from the
        forward pass: the answer is the old one exactly where every token of it is still the most
        likely one behind those before it (up to rounding, where two tokens are as likely).
        """
        begin = time.perf_counter()
        self._teacher.set_ratio(0)
        chosen = {name: self._thresholds.layers[name] for name in layers}
        thresholds = replace(self._thresholds, layers=chosen)
        teacher = MaskedTeacher(self._opened.model, self._opened.folder, thresholds)
        teacher.set_ratio(ratio)
        row, changed = self._compared(teacher, group)
        places = [place for place, other in enumerate(changed) if other]
        anew = self._ask(places, group)
        teacher.set_ratio(0)
        correct = list(self.answers.correct)
        for place, right in zip(places, anew.correct, strict=True):
            correct[place] = right
        return replace(
            row,
            group=group,
            correct=tuple(correct),
            zeros=thresholds.share_of_zeros(ratio),
            seconds=time.perf_counter() - begin,
        )

    def _ask(self, places: Sequence[int], what: str) -> Answers:
        asking = self._asking
        indices = [asking.indices[place] for place in places]
        token_ids, correct = [], []
        answered = greedy_answers(
            self._engine, self._prompts, indices, max_new_tokens=asking.max_new_tokens, chunk=CHUNK
        )
        for _, question, completion in answered:
            token_ids.append(tuple(completion.token_ids))
            right = verify(asking.rule.rule, completion.text, question).reward == 1.0
            correct.append(right)
            note = f"{what}: {sum(correct) / len(correct):.1%} right"
            self.progress(len(correct), len(indices), note)
        return Answers(token_ids=tuple(token_ids), correct=tuple(correct))

    def _batches(self) -> Iterator[Rows]:
        """The fixed text, some questions at a time: images are not all held at once."""
        size = self._asking.runtime.micro_batch_questions
        places = range(len(self._asking.indices))
        for start in places[::size]:
            yield make_rows([self._group(place) for place in places[start : start + size]])

    def _group(self, place: int) -> Group:
        index = self._asking.indices[place]
        prompt = self._prompts(index)
        said = Response(token_ids=self.answers.token_ids[place], source=TEACHER)
        return Group(
            question_id=self._prompts.questions[index].id,
            student_prompt=prompt,
            teacher_prompt=prompt,
            responses=(said,),
        )

    def _states(self, teacher: MaskedTeacher, rows: Rows) -> torch.Tensor:
        home = torch.device("cpu")
        return teacher_states(teacher, rows, self._opened.ids, self._precision, home)

    def _compared(self, teacher: MaskedTeacher, what: str) -> tuple[Measured, list[bool]]:
        """Divergence and entropy, means over each answer's tokens; which answers change."""
        ids = self._opened.ids
        jsd, entropy, changed = [], [], []
        for done, (rows, whole_ND) in enumerate(zip(self._batches(), self._whole, strict=True)):
            found = token_measures(
                whole_ND,
                self._states(teacher, rows),
                self._head_VD,
                rows.targets_N,
                vocabulary=ids.vocabulary,
                banned=ids.banned,
            )
            for start, stop in rows.spans:
                one = TokenMeasures(*(values[start:stop] for values in found))
                jsd.append(one.jsd_N.mean().item())
                entropy.append(one.entropy_N.mean().item())
                changed.append(not bool(one.kept_N.all()))
            self.progress(done + 1, len(self._whole), f"{what}: divergence")
        row = Measured(
            ratio=teacher.ratio,
            correct=(),
            changed=sum(changed) / len(changed),
            entropy=t_interval(entropy),
            jsd=t_interval(jsd),
            zeros=self._thresholds.share_of_zeros(teacher.ratio),
            seconds=0.0,
        )
        return row, changed
