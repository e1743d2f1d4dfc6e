"""The training loop: iterations of a plan, logged, validated, checkpointed, resumable."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from masters import ranks
from masters.errors import NonFiniteLossError
from masters.models.feature_cache import FeatureCache
from masters.models.load import TokenIds, save_model
from masters.models.lora import save_adapter
from masters.models.memory import doing
from masters.teachers.masked import MaskedTeacher
from masters.training.checkpoints import Position, cut_log, save_state, sync
from masters.training.engine import Engine, Single
from masters.training.feed import Curriculum, Feed, Prepared, open_feed
from masters.training.group_forward import Form, first_use, make_ready, write_verdicts
from masters.training.groups import Group
from masters.training.objective import StepSums
from masters.training.optimiser import OptimiserSettings, learning_rate
from masters.training.step import StepSettings, accumulate
from masters.training.stored_signal import StoredSignal
from masters.training.student import Student
from masters.training.trackers import Tracker

LOGS = ("metrics.jsonl", "validation.jsonl")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how safely to train.

    Args:
        start, stop: iterations [start, stop) of the phase.
        total: iterations of the phase (for the learning-rate schedule).
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations; 0 for none.
        workers: threads that prepare coming iterations; 0 prepares in the loop.
    """

    start: int
    stop: int
    total: int
    checkpoint_every: int
    validate_every: int
    workers: int


class Trainer:
    """Runs the iterations of one train stage in ``folder``.

    Args:
        student: the root module.
        teacher: the live masked teacher, its stored signal, or None.
        curriculum: groups and ratios by iteration.
        ids: special ids of the student.
        step: what a step does.
        optimiser: see OptimiserSettings.
        loop: see LoopSettings.
        folder: the stage's folder.
        source: model folder whose processor files go with the student's weights.
        validate: greedy accuracy on validation questions, (accuracy, low, high, n); None for none.
            Ranks share the questions and get the same.
        progress: done, total, note.
        trackers: read the same numbers as metrics.jsonl.
        group_forward: how groups are seen, if the models allow it; see `group_forward.first_use`.
        features: the caches of the models' features, by role.
        engine: holds the student's weights and the optimiser's state, already prepared.

    Ranks that train together each have a trainer, with a curriculum of their part of every step;
    rank 0 alone writes what is no checkpoint.
    """

    def __init__(
        self,
        *,
        student: Student,
        teacher: MaskedTeacher | StoredSignal | None,
        curriculum: Curriculum,
        ids: TokenIds,
        step: StepSettings,
        optimiser: OptimiserSettings,
        loop: LoopSettings,
        folder: Path,
        source: Path,
        validate: Callable[[Any], tuple[float, float, float, int]] | None,
        progress: Callable[[int, int, str], None],
        trackers: Sequence[Tracker] = (),
        group_forward: str = "repeat",
        features: Mapping[str, FeatureCache] | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.engine: Engine = engine or Single()
        self.main = ranks.rank() == 0
        self.student, self.curriculum = student, curriculum
        self.stored = teacher if isinstance(teacher, StoredSignal) else None
        self.teacher = teacher if isinstance(teacher, MaskedTeacher) else None
        self.ids, self.step, self.optimiser_settings, self.loop = ids, step, optimiser, loop
        self.folder, self.source, self.validate = folder, source, validate
        self.progress, self.trackers = progress, trackers
        self.group_forward = group_forward
        self.features = features or {}
        self.seconds_waiting = 0.0
        self.forms: dict[str, Form] = {}
        self.root, self.optimiser = self.engine.optimise(student, optimiser)
        self.best: float | None = None

    def carry_optimiser(self, file: Path) -> None:
        """Starts from another stage's optimiser state (Adam runs on within a phase)."""
        self.engine.take_optimiser_state(self.optimiser, file)

    def run(self) -> dict[str, Any]:
        """Trains from the last checkpoint (or the start) to the end; writes model/ and best/."""
        done = self._resume()
        steps = self.loop.stop - self.loop.start
        if self.loop.validate_every and done == 0:
            self._validate(0)
        coming = range(self.loop.start + done, self.loop.stop)
        feed = open_feed(self.curriculum, self.stored, coming, workers=self.loop.workers)
        with feed:
            while done < steps:
                metrics = self._iteration(self.loop.start + done, feed)
                done += 1
                self._log(done, metrics)
                if self.loop.validate_every and (
                    done % self.loop.validate_every == 0 or done == steps
                ):
                    self._validate(done)
                if done % self.loop.checkpoint_every == 0 and done < steps:
                    self._checkpoint(done)
                rate = 1 / max(metrics["time/step_seconds"], 1e-9)
                self.progress(done, steps, f"{rate:.1f} steps/s, loss {metrics['loss/total']:.4f}")
        self.seconds_waiting = feed.seconds_waiting
        self._checkpoint(done)
        return self._finish(steps)

    def _iteration(self, i: int, feed: Feed) -> dict[str, float]:
        begin = time.perf_counter()
        prepared = feed.take(i)
        groups, stored = prepared.groups, prepared.signal
        waited = time.perf_counter() - begin
        ratio = self.curriculum.ratio(i)
        before = self._pictures()
        masking = {"mask_bytes_read": 0.0, "mask_seconds": 0.0}
        if self.teacher is not None:
            bytes_before, seconds_before = self.teacher.bytes_read, self.teacher.seconds
            self.teacher.set_ratio(ratio)
            masking = {
                "mask_bytes_read": self.teacher.bytes_read - bytes_before,
                "mask_seconds": self.teacher.seconds - seconds_before,
            }
        if not self.forms:
            self._first_use(groups)
        everyone = ranks.gathered((len(groups), prepared.dropped))
        questions, dropped = (sum(counts) for counts in zip(*everyone, strict=True))
        sums = StepSums()
        rate = learning_rate(i, self.loop.total, self.optimiser_settings)
        for part in self.optimiser.param_groups:
            part["lr"] = rate
        norm = self._step(i, prepared, questions, sums) if questions else 0.0
        for rank, theirs in enumerate(ranks.gathered(sums)):
            if rank != ranks.rank():
                sums.add(theirs)
        found, looked_for = (now - old for now, old in zip(self._pictures(), before, strict=True))
        seconds = time.perf_counter() - begin
        return {
            **{f"loss/{name}": value for name, value in sums.loss.items()},
            "loss/total": sums.loss.get("total", 0.0),
            **{f"grad_norm/{n}": math.sqrt(v) for n, v in sums.squared_norm.items()},
            "grad_norm/total": norm,
            **{f"reward/{name}": fmean(values) for name, values in sums.rewards.items()},
            **{f"entropy/{n}": total / max(1, sums.scored) for n, total in sums.entropy.items()},
            "groups/without_signal": sums.silent_groups / max(1, sums.groups),
            "groups/dropped": dropped,
            "kl/max": sums.kl_max,
            **_bounds(sums),
            "mask/ratio": ratio / 10_000,
            "lr": rate,
            "tokens": sums.tokens,
            "time/tokens_per_second": sums.tokens / seconds,
            "time/data_wait": waited / seconds,
            "time/step_seconds": seconds,
            # Like the times, these are others where a run was killed and goes on: the teacher is
            # masked anew, and no features are kept yet.
            **{f"time/{name}": value for name, value in masking.items()},
            "time/features_reused": found / max(1, looked_for),
            **({} if stored is None else {"time/signal_seconds": stored.seconds}),
        }

    def _pictures(self) -> tuple[int, int]:
        """Pictures whose features were kept, and all that were looked for, so far."""
        counts = [cache.counts for cache in self.features.values()]
        hits = sum(count.hits for count in counts)
        return hits, hits + sum(count.misses for count in counts)

    def _first_use(self, groups: list[Group]) -> None:
        """Decides how each model sees a group, and writes down what the first batch showed."""
        models = {"student": self.student.vlm}
        if self.teacher is not None:
            models["teacher"] = self.teacher.model
        found = {
            name: first_use(
                model, groups, self.group_forward, teacher=name == "teacher", pad=self.ids.pad,
                precision=self.student.precision, vocabulary=self.step.vocabulary,
                limit=self.step.micro_batch_responses,
                root=self.root if name == "student" else None,
            )
            for name, model in models.items()
        }  # fmt: skip
        verdicts = {name: verdict for name, verdict in found.items() if verdict is not None}
        if len(verdicts) < len(found):  # nothing to share in this batch; a later one will tell
            return
        write_verdicts(self.folder, verdicts)
        self._see_groups({name: verdict.form for name, verdict in verdicts.items()})

    def _formed(self) -> str:
        """What a decision on the forms holds for."""
        models = [self.student.vlm, *([] if self.teacher is None else [self.teacher.model])]
        parts = (
            f"{model.device.type} {model.config._attn_implementation} {model.dtype}"
            for model in models
        )
        return f"{self.group_forward}: {', '.join(parts)}"

    def _see_groups(self, forms: Mapping[str, Form]) -> None:
        self.forms = dict(forms)
        self.step = replace(
            self.step,
            student_form=forms["student"],
            teacher_form=forms.get("teacher", "repeat"),
        )
        make_ready(self.student.vlm, forms["student"])
        if self.teacher is not None:
            make_ready(self.teacher.model, self.step.teacher_form)

    def _step(self, i: int, prepared: Prepared, questions: int, sums: StepSums) -> float:
        """One optimiser step over so many questions; returns the gradient norm before clipping."""
        groups = prepared.groups
        try:
            with doing(f"training on step {i + 1}"):
                accumulate(
                    self.root,
                    prepared.signal or self.teacher,
                    groups,
                    ids=self.ids,
                    settings=self.step,
                    questions=questions,
                    sums=sums,
                )
            with doing(f"updating the weights in step {i + 1}"):
                return self.engine.apply(self.student, self.optimiser, self.step.clip_norm)
        except NonFiniteLossError as error:
            # Nothing of this step was applied: what came before it is worth keeping.
            self.optimiser.zero_grad(set_to_none=True)
            if i > self.loop.start:
                self._checkpoint(i - self.loop.start)
            mine = [group.question_id for group in groups]
            names = ", ".join(name for named in ranks.gathered(mine) for name in named)
            raise NonFiniteLossError(
                f"step {i + 1}: {error}. Questions of the step: {names}. Steps before it are kept"
            ) from error

    def _log(self, done: int, metrics: dict[str, float]) -> None:
        if not self.main:
            return
        with (self.folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.loop.start + done, **metrics}) + "\n")
        for tracker in self.trackers:
            tracker.log(self.loop.start + done, metrics)

    def _resume(self) -> int:
        position = self.engine.load(self.folder / "checkpoints", self.student, self.optimiser)
        step = self.loop.start if position is None else position.step
        for name in LOGS:
            # A run that starts again from nothing validates its first point again too.
            if self.main:
                cut_log(self.folder / name, step if position is not None else -1)
        if position is not None:
            self.best = position.best
            if position.forms and position.formed == self._formed():
                self._see_groups(position.forms)
        return step - self.loop.start

    def _checkpoint(self, done: int) -> None:
        at = self.loop.start + done
        ratio = self.curriculum.ratio(at - 1) if done else 0
        for name in LOGS:
            if self.main and (self.folder / name).exists():
                sync(self.folder / name)
        position = Position(step=at, ratio=ratio, best=self.best, forms=self.forms,
                            formed=self._formed())  # fmt: skip
        self.engine.save(self.folder / "checkpoints", self.student, self.optimiser, position)

    def _validate(self, done: int) -> None:
        assert self.validate is not None
        self.student.eval()
        doing_this = doing(f"validating after step {self.loop.start + done}")
        with doing_this, self.engine.whole(self.student) as vlm:
            accuracy, low, high, n = self.validate(vlm)
        self.student.train()
        row = {
            "step": self.loop.start + done,
            "n": n,
            "accuracy": accuracy,
            "low": low,
            "high": high,
        }
        if self.main:
            with (self.folder / "validation.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if self.best is None or accuracy > self.best:
            self.best = accuracy
            self._export("best")

    def _export(self, name: str) -> None:
        exported = self.engine.exported(self.student)
        if exported is not None:
            vlm, state = exported
            self._place(name, lambda to: save_model(vlm, to, source=self.source, state=state))
        ranks.wait_for_all()

    def _place(self, name: str, write: Callable[[Path], None]) -> None:
        """Has ``write`` fill a folder that takes its name when it is whole and on disk."""
        partial = self.folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        for file in partial.iterdir():
            sync(file)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        partial.rename(self.folder / name)

    def _finish(self, steps: int) -> dict[str, Any]:
        self._export("model")
        if self.student.adapted:
            self._place("adapter", lambda to: save_adapter(self.student.vlm, to))
        if self.main and self.best is None:
            shutil.rmtree(self.folder / "best", ignore_errors=True)
        state = self.engine.optimiser_state(self.optimiser)
        if state is not None:
            save_state(state, self.folder / "optimiser.pt")
            sync(self.folder / "optimiser.pt")
        for tracker in self.trackers:
            tracker.close()
        teacher = self.teacher
        return {
            "steps": steps,
            "best_validation": self.best,
            "mask_bytes_read": sum(ranks.gathered(teacher.bytes_read if teacher else 0)),
            "mask_seconds": teacher.seconds if teacher else 0.0,
            "seconds_waiting": round(self.seconds_waiting, 3),
            "features": {
                name: {"of": cache.level, **asdict(cache.counts)}
                for name, cache in self.features.items()
            },
        }


def _bounds(sums: StepSums) -> dict[str, float]:
    """What may be missing from the divergence of a token, mean and most; nothing if it is exact."""
    if not sums.bounded:
        return {}
    return {
        "signal/topk_bound": sums.bound_sum / sums.bounded,
        "signal/topk_bound_max": sums.bound_max,
    }
