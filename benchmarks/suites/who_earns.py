"""Which responses earn the distillation reward of Eq. 7: right ones, or long ones?

    python benchmarks/suites/who_earns.py TRAIN_STAGE PROFILE.yaml [--json FILE]

TRAIN_STAGE is the folder of a train stage with responses of both models and an accuracy reward
(`masters plan` names it). For the first QUESTIONS questions of its first mask stage it takes the
groups as training saw them: D of every response between the masked teacher and the student that
starts, the reward within its group, whether the response is right, and its length. It prints means
over responses of a kind, and how the reward goes with being right and with length within a group
(mean correlation over the groups in which both vary).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masters.artifacts import read_record
from masters.data.sources import open_questions
from masters.data.tables import KEY_COLUMNS, RESPONSES, REWARDS, read_shards
from masters.recipe import load_recipe
from masters.rewards.distillation import distillation_reward
from masters.stages.opening import Prompts, open_model
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.groups import Group, Response, make_rows
from masters.training.losses import jsd_from_log_probs
from masters.training.teacher_signal import teacher_states
from masters.training.token_scores import log_probs
from masters.workers import configure

QUESTIONS = 384
BATCH = 48


def answers(stage: Path) -> dict[str, list[dict[str, Any]]]:
    """Question -> its responses at the schedule's first ratio, with verdicts."""
    record = read_record(stage)
    ratio = record["spec"]["schedule"]["ratios"][0]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for side in ("teacher", "student"):
        given, judged = (
            next(stage.parent.glob(f"*-{record['inputs'][f'{role}.{side}'][:12]}"))
            for role in ("responses", "rewards")
        )
        verdicts = {
            tuple(row[key] for key in KEY_COLUMNS): row["reward"]
            for row in read_shards(judged / "rewards", REWARDS).to_pylist()
        }
        for row in read_shards(given / "responses", RESPONSES).to_pylist():
            if row["ratio"] == (ratio if side == "teacher" else 0):
                row["right"] = verdicts[tuple(row[key] for key in KEY_COLUMNS)]
                found[row["question_id"]].append(row)
    both = {"teacher", "student"}
    return {q: rows for q, rows in found.items() if {row["source"] for row in rows} == both}


def earned(stage: Path, profile: str) -> list[dict[str, Any]]:
    """One row for each response: group, source, right, tokens, D and reward."""
    record = read_record(stage)
    recipe = load_recipe("masters", profile=profile)
    configure(recipe.runtime)
    folders = (
        next(stage.parent.glob(f"train-{record['inputs'][role][:12]}")) / "model"
        for role in ("teacher", "student")
    )
    big, small = (
        open_model(folder, recipe.prompt, recipe.runtime, precision="fp32", teacher=True)
        for folder in folders
    )
    ratio = record["spec"]["schedule"]["ratios"][0]
    thresholds = measure_thresholds(big.folder, [ratio]) if ratio else None
    teacher, student = (
        MaskedTeacher(big.model, big.folder, thresholds),
        MaskedTeacher(small.model, small.folder, None),
    )
    teacher.set_ratio(ratio)
    questions = open_questions(recipe.data.train)
    prompts = Prompts(questions, big.processor, recipe.prompt)
    groups = list(answers(stage).items())[:QUESTIONS]
    rows_found: list[dict[str, Any]] = []
    for start in range(0, len(groups), BATCH):
        some = groups[start : start + BATCH]
        rows = make_rows([_group(prompts, questions.find(q), q, given) for q, given in some])
        jsd_N = _divergence(rows, (teacher, big), (student, small))
        for place, (q, given) in enumerate(some):
            spans = [rows.spans[rows.row_of[place][j]] for j in range(len(given))]
            d_G = torch.stack([jsd_N[a:b].double().mean() for a, b in spans])
            reward_G = distillation_reward(d_G)
            for row, d, reward in zip(given, d_G.tolist(), reward_G.tolist(), strict=True):
                rows_found.append(
                    {
                        "question": q,
                        "source": row["source"],
                        "right": row["right"] == 1,
                        "tokens": len(row["token_ids"]),
                        "divergence": d,
                        "reward": reward,
                    }
                )
    return rows_found


def _group(prompts: Prompts, index: int, q: str, given: list[dict[str, Any]]) -> Group:
    prompt = prompts(index)
    said = tuple(Response(token_ids=tuple(r["token_ids"]), source=r["source"]) for r in given)
    return Group(question_id=q, student_prompt=prompt, teacher_prompt=prompt, responses=said)


@torch.no_grad()
def _divergence(rows: Any, teacher: Any, student: Any) -> torch.Tensor:
    said = []
    for model, opened in (teacher, student):
        hidden_ND = teacher_states(model, rows, opened.ids, torch.float32, torch.device("cpu"))
        head_VD = opened.model.get_output_embeddings().weight[: opened.ids.vocabulary]
        said.append(log_probs(hidden_ND @ head_VD.T))
    return jsd_from_log_probs(said[0], said[1], 0.5)[0]


def within(rows: list[dict[str, Any]], key: str) -> tuple[float, int]:
    """Mean over groups of the correlation of reward and ``key``; groups in which both vary."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["question"]].append(row)
    found = []
    for group in groups.values():
        x, y = (np.array([float(row[name]) for row in group]) for name in (key, "reward"))
        if x.std() > 0 and y.std() > 0:
            found.append(np.corrcoef(x, y)[0, 1])
    return float(np.mean(found)), len(found)


def main() -> None:
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", type=Path)
    parser.add_argument("profile")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = earned(asked.stage, asked.profile)
    print("| source | right | responses | mean tokens | mean D (nat) | mean reward |")
    print("| --- | --- | --- | --- | --- | --- |")
    table = []
    for source in ("teacher", "student"):
        for right in (True, False):
            some = [r for r in rows if r["source"] == source and r["right"] == right]
            means = [
                float(np.mean([r[k] for r in some])) for k in ("tokens", "divergence", "reward")
            ]
            table.append([source, right, len(some), *means])
            print(
                f"| {source} | {right} | {len(some)} | "
                + " | ".join(f"{m:.3f}" for m in means)
                + " |"
            )
    related = {key: within(rows, key) for key in ("right", "tokens")}
    for key, (value, n) in related.items():
        print(f"correlation of the reward with {key} within a group: {value:+.2f} ({n} groups)")
    if asked.json is not None:
        said = {
            "table": table,
            "within": {k: {"mean": v, "groups": n} for k, (v, n) in related.items()},
        }
        asked.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
