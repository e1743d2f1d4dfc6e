"""Writes the asked tasks of a sample folder into ``--output_path``, in lmms-eval's layout.

STAND_IN_SAMPLE: the folder of one made-up model. STAND_IN_SWALLOW=TASK: that task fails as
lmms-eval fails, with a message and exit code 0. STAND_IN_CRASH=TASK: with exit code 3.
"""

import argparse
import json
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in ("--model", "--model_args", "--tasks", "--output_path", "--batch_size", "--verbosity"):
    parser.add_argument(flag, required=True)
parser.add_argument("--log_samples", action="store_true")
parser.add_argument("--limit", type=float)
args = parser.parse_args()

tasks = args.tasks.split(",")
judge = {name: os.environ.get(name) for name in ("MODEL_VERSION", "OPENAI_API_URL", "API_TYPE")}
print(f"stand-in: {tasks} of {args.model_args} judged by {judge}")
print("the key is", os.environ.get("OPENAI_API_KEY"))
if os.environ.get("STAND_IN_CRASH") in tasks:
    print("CUDA out of memory (not really)", file=sys.stderr)
    sys.exit(3)
if os.environ.get("STAND_IN_SWALLOW") in tasks:
    print("Error during evaluation: the data set is not there", file=sys.stderr)
    sys.exit(0)

[source] = Path(os.environ["STAND_IN_SAMPLE"]).glob("made-up__model/*_results.json")
content = json.loads(source.read_text(encoding="utf-8"))
path = args.model_args.split("pretrained=")[1].split(",")[0]
folder = Path(args.output_path) / "__".join(path.split("/")[-2:])
folder.mkdir(parents=True)
for key in ("results", "n-samples", "configs"):
    content[key] = {task: content[key][task] for task in tasks}
if args.limit:
    for sizes in content["n-samples"].values():
        sizes["original"] = 10_000
(folder / source.name).write_text(json.dumps(content), encoding="utf-8")
for task in tasks:
    log = source.with_name(source.name.replace("results.json", f"samples_{task}.jsonl"))
    (folder / log.name).write_text(log.read_text(encoding="utf-8"), encoding="utf-8")
