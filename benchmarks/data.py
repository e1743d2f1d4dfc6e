"""How long a large data set takes to open and plan, and how much memory: in fresh processes.

    python benchmarks/data.py --rows 1500000 --json data.json

Makes the questions and a few thousand tiny images in a temporary folder, then measures, each in a
process of its own: the first opening (every row is checked and indexed), the second (the index is
in the cache), `make_plan` of the recipe `masters` with that data and an empty cache, and the pairs
that `generate` would answer.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from masters.data.sources import Source

KINDS = ("jsonl", "llava", "parquet", "webdataset")
_WORDS = "what is shown at the left of the picture, and is it larger than the thing beside it?"


def main() -> None:
    """Reads the command line; with ``--measure`` it is the process that is measured."""
    parser = argparse.ArgumentParser(description="How large data sets open, index and plan.")
    parser.add_argument("--rows", type=int, default=1_500_000, help="questions (1500000)")
    parser.add_argument("--images", type=int, default=5_000, help="image files or sizes (5000)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="all by default")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    found = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for kind in given.kinds:
            found += list(measurements(kind, Path(folder) / kind, given.rows, given.images))
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")


def measurements(kind: str, folder: Path, rows: int, images: int) -> Iterator[dict[str, Any]]:
    """Writes the data, then yields what each process measured."""
    folder.mkdir(parents=True)
    begin = time.perf_counter()
    path = WRITERS[kind](folder, rows, images)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(
        f"{kind}: {rows:,} rows, {size / 1e6:,.0f} MB, made in {time.perf_counter() - begin:.0f} s"
    )
    for number, what in enumerate(("open", "open", "plan", "pairs")):
        cache = folder / ("cache" if what == "open" else f"cache-{what}")
        words = [sys.executable, __file__, "--measure", what, kind, str(path)]
        environment = {**os.environ, "MASTERS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        name = {0: "open, first time", 1: "open, from the cache"}.get(number, what)
        row = {"kind": kind, "rows": rows, "what": name, **json.loads(done.stdout)}
        print(f"  {name:<22}{row['seconds']:7.1f} s {row['peak_rss_gb']:6.2f} GB")
        yield row


def measure(what: str, kind: str, path: str) -> dict[str, float]:
    """Seconds and peak memory of one thing, imports left out of the time."""
    from masters import curriculum
    from masters.data.sources import open_questions
    from masters.plan import make_plan
    from masters.recipe import load_recipe

    source = {"kind": "datasets" if kind == "parquet" else kind, "path": path}
    begin, cpu = time.perf_counter(), time.process_time()
    if what == "open":
        questions = open_questions(cast("Source", SimpleNamespace(**source)))
        questions.fingerprint()
        _ = questions[len(questions) // 2], questions.find(questions.ids[-1])
    else:
        test = {"kind": "scenes", "count": 100}
        overrides = [f"data.train={json.dumps(source)}", f"data.test={json.dumps(test)}"]
        recipe = load_recipe("masters", profile="tiny", overrides=overrides)
        with tempfile.TemporaryDirectory() as out:
            plan = make_plan(recipe, out)
        if what == "pairs":
            begin, cpu = time.perf_counter(), time.process_time()
            spec: Any = plan.stage("generate/0-teacher/teacher").spec
            n = sum(part.questions for part in plan.curriculum)
            curriculum.pairs(spec.schedule, n, spec.start, spec.stop)
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


# ------------------------------------------------------------------------------------- the data


def _rows(rows: int) -> Iterator[dict[str, str]]:
    for i in range(rows):
        yield {
            "id": f"question-{i}",
            "question": f"{i}: {_WORDS}",
            "answer": f"a thing of {i % 97}",
        }


def _picture(i: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8 + i % 50, 8 + i // 50 % 50), (i % 256, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(folder: Path, images: int) -> list[str]:
    names = [f"images/{i % 50}/{i}.png" for i in range(images)]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_picture(i))
    return names


def _write_jsonl(folder: Path, rows: int, images: int) -> Path:
    names = _pictures(folder, images)
    with open(folder / "data.jsonl", "w") as file:
        for i, row in enumerate(_rows(rows)):
            file.write(json.dumps({**row, "image": names[i % images]}) + "\n")
    return folder / "data.jsonl"


def _write_llava(folder: Path, rows: int, images: int) -> Path:
    names = _pictures(folder, images)
    with open(folder / "data.json", "w") as file:
        for i, row in enumerate(_rows(rows)):
            turns = [("human", f"<image>\n{row['question']}"), ("gpt", row["answer"])]
            talk = [{"from": speaker, "value": said} for speaker, said in turns]
            entry = {"id": row["id"], "image": names[i % images], "conversations": talk}
            file.write(("," if i else "[") + json.dumps(entry) + "\n")
        file.write("]")
    return folder / "data.json"


def _write_parquet(folder: Path, rows: int, images: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": _picture(i), "path": None} for i in range(images)]
    batch: list[dict[str, Any]] = []
    shard = 100_000
    for i, row in enumerate(_rows(rows)):
        batch.append({**row, "image": cells[i % images]})
        if len(batch) == shard or i == rows - 1:
            table = pa.Table.from_pylist(batch)
            path = folder / f"train-{i // shard:05d}.parquet"
            pq.write_table(table, path, row_group_size=1000)
            batch = []
    return folder


def _write_webdataset(folder: Path, rows: int, images: int) -> Path:
    import tarfile

    pictures = [_picture(i) for i in range(images)]
    numbered = enumerate(_rows(rows))
    for shard in range(-(-rows // 10_000)):
        with tarfile.open(folder / f"shard-{shard:05d}.tar", "w") as tar:
            for i, row in islice(numbered, 10_000):
                text = json.dumps(row).encode()
                for ending, content in (("png", pictures[i % images]), ("json", text)):
                    member = tarfile.TarInfo(f"{i:08d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


WRITERS: dict[str, Callable[[Path, int, int], Path]] = {
    "jsonl": _write_jsonl,
    "llava": _write_llava,
    "parquet": _write_parquet,
    "webdataset": _write_webdataset,
}


if __name__ == "__main__":
    main()
