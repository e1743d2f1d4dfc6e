"""Writes what docs/sizes.md says in numbers: its command's transcript and its table of models.

Run ``make recipes``. A test fails when the committed page differs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from masters.recipe import Mask, ModelSource, Phase
from masters.sizes import ModelSize, model_size

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "sizes.md"
CONFIGS = ROOT / "tests" / "configs"
BLOCKS = re.compile(r"```bash\n(masters plan .*?)```\n\n```text\n(.*?)```", re.DOTALL)
DIGEST = re.compile(r"(stages/[a-z]+-)[0-9a-f]{12}")
ROWS = re.compile(r"\| checkpoint \|.*\| share \|\n[| :-]+\n((?:\|.*\n)*)")


def page() -> str:
    """The page with its transcript and its table made anew."""
    text = PAGE.read_text(encoding="utf-8")
    block = BLOCKS.search(text)
    assert block is not None, f"{PAGE}: no command with a transcript below it"
    shown = printed(shlex.split(block[1].replace("\\\n", " "))[1:])
    text = text[: block.start(2)] + shown + text[block.end(2) :]
    rows = ROWS.search(text)
    assert rows is not None, f"{PAGE}: no table of models"
    return text[: rows.start(1)] + table_rows() + text[rows.end(1) :]


def printed(words: list[str]) -> str:
    """What ``masters WORDS`` prints in the repository, 100 columns wide.

    Digests are left out: they change with the code, and the page need not.
    """
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "masters", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": source, "COLUMNS": "100", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.rstrip() for line in DIGEST.sub(r"\1…", done.stdout).splitlines())
    return "\n".join(lines) + "\n"


def table_rows() -> str:
    """One row for each configuration in tests/configs, as a teacher under the default mask."""
    phases = [("0", Phase(mask=Mask()))]
    sized = {
        path.parent.name: model_size(ModelSource(path=str(path.parent)), "teacher", phases=phases)
        for path in CONFIGS.glob("*/config.json")
    }
    ordered = sorted(sized, key=lambda name: (name.split("-")[0].lower(), sized[name].parameters))
    return "".join(_row(name, sized[name]) for name in ordered)


def _row(name: str, size: ModelSize) -> str:
    (masked,) = size.masked
    tensors = f"{masked.tensors:,}"
    if masked.matrices > masked.tensors:
        tensors += f" ({masked.matrices:,})"
    cells = [name, f"{size.parameters:,}", *(f"{part:,}" for part in size.parts.values())]
    return f"| {' | '.join([*cells, tensors, f'{masked.parameters / size.parameters:.1%}'])} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
