"""A run does not depend on how a group's responses reach the models."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from tests.running import SMALL, folders, lines, read, succeeds

STEPS = 20


@pytest.mark.slow
def test_the_first_steps_are_those_of_repeated_prompts(tmp_path: Path) -> None:
    sets = (*SMALL, f"data.train.count={16 * STEPS}", "validation.every=null")
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path), "--until", "train/0-teacher")
    logs = {}
    for form in ("auto", "repeat"):
        succeeds("run", *words, sets=(*sets, f"runtime.group_forward={form}"))
        train = folders(tmp_path)["train/0-teacher"]
        logs[form] = lines(train / "metrics.jsonl")
        seen = read(train / "first_use.json")
        assert {verdict["form"] == "repeat" for verdict in seen.values()} == {form == "repeat"}
        shutil.rmtree(train)
    assert len(logs["auto"]) == len(logs["repeat"]) == STEPS
    for ours, theirs in zip(logs["auto"], logs["repeat"], strict=True):
        for name in ours.keys() | theirs.keys():
            if not name.startswith("time/"):
                assert math.isclose(ours[name], theirs[name], rel_tol=0, abs_tol=1e-5), name
    assert logs["auto"] != logs["repeat"], "rounding tells the two forms apart"
