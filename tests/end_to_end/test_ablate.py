"""`masters ablate` itself: killed and run again, then once more; what it shows and refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.running import command, environment, fails, read, succeeds

SUITES = Path(__file__).parents[1] / "suites"
KILLS = 4

SUITE = """
about: Whether a suite ends the same however often it is killed.
profile: {profile}
seeds: [0, 1]
data: {{scenes: {{}}}}
tune: {{key: method.optimiser.lr, values: [3.0e-4, 1.0e+9], seed: 7, models_of: 0}}
arms:
  labels: {{recipe: sft}}
  masters: {{recipe: masters, tune_as: labels}}
claims:
  - {{id: w, says: Masters beats labels., expects: up, first: labels, second: masters,
     diagnostics: [reward/accuracy/student, groups/without_signal]}}
"""


def written(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "killed.yaml"
    path.write_text(SUITE.format(profile="seconds.yaml"))
    (folder / "seconds.yaml").write_text((SUITES / "seconds.yaml").read_text())
    return path


def starts(out: Path) -> dict[str, float]:
    """When each stage that is done began the work it was done with."""
    return {
        path.parent.name: read(path)["start"] for path in (out / "stages").glob("*/record.json")
    }


def timeless(results: Path) -> Any:
    """The results without what a clock said."""
    content = read(results / "killed.json")
    for run in content["runs"]:
        del run["seconds"]
    return content


@pytest.mark.slow
def test_a_suite_killed_at_random_moments(tmp_path: Path) -> None:
    """No stage that was done is done again, and the numbers are those of a run never killed."""
    suite, out = written(tmp_path / "suite"), tmp_path / "out"
    words = command("ablate", str(suite), "--out", str(out), "--jobs", "2")
    draw = random.Random("suite")
    kept: dict[str, float] = {}
    for kill in range(KILLS + 1):
        run = subprocess.Popen(
            words, env=environment(), start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if kill < KILLS:
            more = draw.randint(2, 5)  # stages further, however busy the machine is
            while len(starts(out)) < len(kept) + more and run.poll() is None:
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 1))
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        else:
            printed, _ = run.communicate(timeout=900)
            assert run.returncode == 0, printed
        now = starts(out)
        assert {name: now[name] for name in kept} == kept
        kept = now
    pages = {path: path.read_bytes() for path in (out / "results").iterdir()}
    succeeds("ablate", str(suite), "--out", str(out))
    assert starts(out) == kept
    assert {path: path.read_bytes() for path in (out / "results").iterdir()} == pages

    never = tmp_path / "never"
    printed = succeeds("ablate", str(suite), "--out", str(never), "--jobs", "2")
    assert "w: Masters beats labels." in printed
    assert starts(never).keys() == kept.keys()
    assert timeless(never / "results") == timeless(out / "results")
    tuned = timeless(never / "results")["tuned"][0]
    assert tuned["value"] == 0.0003 and tuned["edge"]
    assert tuned["tries"][1]["accuracy"] is None  # it diverged, in a process of its own
    page = (never / "results" / "claim_w.md").read_text()
    assert "`groups/without_signal` | masters" in page
    summary = json.loads((never / "results" / "summary.json").read_text())
    assert [(row["data"], row["seeds"]) for row in summary] == [("scenes", 2)]


def test_what_the_command_shows_and_refuses(tmp_path: Path) -> None:
    suite, out = str(SUITES / "small.yaml"), str(tmp_path / "out")
    printed = succeeds("ablate", suite, "--plan", "--data", "worded", "--seeds", "1", "--out", out)
    assert "worded" in printed and "4 runs; to do" in printed
    assert not (tmp_path / "out").exists()
    assert "expected numbers parted by commas" in fails("ablate", suite, "--seeds", "one")
    assert "has no arm 'label'" in fails("ablate", suite, "--arms", "label", "--plan")
    assert "run it without --pages first" in fails("ablate", suite, "--pages", "--out", out)
    assert "--pages runs nothing" in fails("ablate", suite, "--pages", "--jobs", "2")
