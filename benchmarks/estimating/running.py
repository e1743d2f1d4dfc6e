"""Runs every stage of a case as `masters run` does, and takes its processor time."""

from __future__ import annotations

import gc
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from estimating.cases import Case
from masters import load_recipe, make_plan
from masters.data.sources import open_questions
from masters.estimate.cluster import Cluster
from masters.estimate.stages import Jobs
from masters.estimate.work import Work
from masters.estimate.workload import Workload
from masters.models.load import load_processor
from masters.models.tiny import EVERYDAY_WORDS, TINY_SIZES, TinySize, write_tiny_model
from masters.plan import Plan
from masters.recipe import JsonlSource
from masters.run import dispatch_stage
from masters.stages.opening import Prompts
from masters.workers import Task, execute

HEAD_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One stage that was run, and its seconds of processor time."""

    case: str
    stage: str
    kind: str
    seconds: float
    plan: Plan
    workload: Workload

    def work(self, cluster: Cluster) -> Work:
        """What the stage is counted to do."""
        jobs = Jobs(self.plan.recipe, self.plan.questions, cluster, self.workload)
        return jobs.job(self.stage).work(1)


def run_case(case: Case, folder: Path) -> list[Ran]:
    """Runs the case's plan, stage by stage, in this process; what is in the folder stays."""
    plan, workload = prepared(case, folder)
    found = []
    for stage in plan.stages:
        above = {role: plan.by_name[name] for role, name in stage.inputs.items()}
        task = Task(
            name=stage.name,
            spec=stage.spec,
            fingerprint=stage.fingerprint,
            folder=stage.folder,
            inputs={role: source.folder for role, source in above.items()},
            input_fingerprints={role: source.fingerprint for role, source in above.items()},
            runtime=plan.recipe.runtime,
        )
        gc.collect()
        begin = time.process_time()
        execute(task, dispatch_stage, lambda done, total, note: None)
        taken = time.process_time() - begin
        found.append(
            Ran(
                case=case.name, stage=stage.name, kind=stage.kind, seconds=taken, plan=plan,
                workload=workload,
            )
        )  # fmt: skip
    return found


def prepared(case: Case, folder: Path) -> tuple[Plan, Workload]:
    """Models, questions and plan of a case, and what its questions are like."""
    for role, (hidden, layers) in (("student", case.student), ("teacher", case.teacher)):
        write_model(folder / role, hidden, layers)
    write_questions(folder / "train.jsonl", case, case.questions, seed=1)
    write_questions(folder / "test.jsonl", case, case.tested, seed=2)
    path = folder / f"{case.name.replace(' ', '_')}.yaml"
    path.write_text(recipe_text(case, folder), encoding="utf-8")
    recipe = load_recipe(path)
    plan = make_plan(recipe, folder / "out")
    processor = load_processor(str(folder / "student"), backend="pil")
    questions = open_questions(JsonlSource(kind="jsonl", path=str(folder / "train.jsonl")))
    prompts = [Prompts(questions, processor, recipe.prompt)(i).ids for i in range(8)]
    image = (case.side // 16) ** 2
    workload = Workload(
        image_tokens=image,
        text_tokens=sum(map(len, prompts)) / len(prompts) - image,
        response_tokens=case.response,
        longest_response=case.response,
        label_tokens=2,
    )
    return plan, workload


def write_model(folder: Path, hidden: int, layers: int) -> None:
    """A random model that never ends its answers: its head has no row for the end tokens."""
    tower = max(32, hidden // 2 // HEAD_WIDTH * HEAD_WIDTH)
    TINY_SIZES["measured"] = TinySize(
        hidden=hidden, layers=layers, heads=hidden // HEAD_WIDTH, ffn=3 * hidden,
        vision_hidden=tower, vision_layers=max(1, layers - 1), vision_heads=tower // HEAD_WIDTH,
        init=hidden**-0.5,
    )  # fmt: skip
    write_tiny_model(folder, "measured", seed=0, texts=[EVERYDAY_WORDS], longest_edge=1024)
    weights = load_file(folder / "model.safetensors")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for token in ("<|im_end|>", "<|endoftext|>"):
        weights["lm_head.weight"][vocabulary[token]] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_questions(path: Path, case: Case, count: int, *, seed: int) -> None:
    """Random words beside random pictures of the case's size."""
    draw, pixels = random.Random(seed), np.random.default_rng(seed)
    words = EVERYDAY_WORDS.split()
    pictures = path.parent / path.stem
    pictures.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        values = pixels.integers(0, 256, (case.side, case.side, 3), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{i}.png")
        text = " ".join(draw.choice(words) for _ in range(case.words))
        rows.append(
            {"id": str(i), "image": f"{path.stem}/{i}.png", "question": text, "answer": "yes"}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_text(case: Case, folder: Path) -> str:
    """The paper's method over these files, on one thread of a CPU."""
    values: dict[str, Any] = {
        "models": {
            "student": {"path": str(folder / "student")},
            "teachers": [{"name": "teacher", "path": str(folder / "teacher")}],
        },
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "prompt": {"suffix": None, "image_backend": "pil"},
        "method": {
            "phases": [{"teacher": "teacher", "mask": {"max_ratio": "0.2", "step": "0.1"}}],
            "responses": {
                "teacher": case.group // 2, "student": case.group - case.group // 2,
                "max_new_tokens": case.response,
            },
            "signal": case.signal,
            "optimiser": {"questions_per_step": case.step, "precision": "fp32"},
        },
        "runtime": {
            "device": "cpu", "threads": 1, "workers": 0, "micro_batch_questions": case.micro,
            "generation_batch": case.rows, "gradient_checkpointing": False,
        },
    }  # fmt: skip
    return json.dumps({"extends": "masters", **values})
