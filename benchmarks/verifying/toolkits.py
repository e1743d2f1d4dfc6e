"""lmms-eval's and VLMEvalKit's own scoring functions, without their hundred dependencies.

The files with the functions are imported as they are from an unpacked package. Their packages'
``__init__`` files, which would import every model and task, are not run, and a module that a
file imports and that is not installed is replaced by an empty stand-in: the functions called here
use none.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from masters.data.questions import Question

#: What stands in where it is missing, and what is never imported for real.
ABSENT = ("loguru", "sacrebleu", "pandas", "sty", "requests", "tqdm", "datasets", "evaluate")
NEVER = ("lmms_eval.api.registry", "vlmeval.smp.log", "vlmeval.smp.file", "vlmeval.smp.vlm")
PACKAGES = (
    "lmms_eval", "lmms_eval.api", "lmms_eval.tasks", "lmms_eval.tasks._task_utils", "vlmeval",
    "vlmeval.smp", "vlmeval.utils", "vlmeval.dataset", "vlmeval.dataset.utils",
)  # fmt: skip

Score = Callable[[str, Question, tuple[str, ...]], float]
"""From response, question and gold answers to a score in 0..1."""


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """One scoring function of a toolkit, and the rule of ours it is compared with.

    Args:
        name: as the table prints it.
        rule: ours.
        score: None where it could not be loaded; ``reason`` says why.
    """

    name: str
    rule: str
    score: Score | None
    reason: str = ""


class _Anything:
    """Stands for whatever a missing module would hold; as a decorator it changes nothing."""

    def __call__(self, *values: Any, **named: Any) -> Any:
        return values[0] if len(values) == 1 and callable(values[0]) and not named else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, missing: frozenset[str]) -> None:
        self._missing = missing

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname in NEVER or fullname.split(".")[0] in self._missing:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _Absent(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def prepare(folders: dict[str, Path | None]) -> None:
    """Makes the packages importable from their folders, file by file."""
    missing = frozenset(name for name in ABSENT if importlib.util.find_spec(name) is None)
    sys.meta_path.insert(0, _StandIns(missing))
    for name in PACKAGES:
        folder = folders.get(name.split(".")[0])
        if folder is not None:
            package = ModuleType(name)
            package.__path__ = [str(folder.joinpath(*name.split(".")))]
            sys.modules[name] = package


def toolkits(lmms: Path | None, vlm: Path | None) -> list[Theirs]:
    """Every function compared with, in the table's order."""
    prepare({"lmms_eval": lmms, "vlmeval": vlm})
    made = []
    for toolkit, folder, name, rule, build in _TABLE:
        label = f"{toolkit}: {name}"
        where = lmms if folder == "lmms" else vlm
        if where is None:
            reason = f"no folder given (--{'lmms-eval' if folder == 'lmms' else 'vlmeval'})"
            made.append(Theirs(name=label, rule=rule, score=None, reason=reason))
            continue
        try:
            made.append(Theirs(name=label, rule=rule, score=build()))
        except Exception as error:  # whatever a foreign file raises on import is the reason
            reason = f"{type(error).__name__}: {error}"
            made.append(Theirs(name=label, rule=rule, score=None, reason=reason))
    return made


def versions(lmms: Path | None, vlm: Path | None) -> dict[str, str]:
    """What the folders say of their versions."""
    found = {}
    for name, folder in (("lmms-eval", lmms), ("VLMEvalKit", vlm)):
        if folder is not None:
            about = sorted(folder.glob("*.dist-info"))
            init = folder / "vlmeval" / "__init__.py"
            said = re.search(r"__version__ = .(.+).\n", init.read_text()) if init.exists() else None
            found[name] = about[0].stem if about else (said[1] if said else "unknown")
    return found


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _lmms_chartqa() -> Score:
    function = _module("lmms_eval.tasks.chartqa.utils").relaxed_correctness
    return lambda said, _, golds: float(any(function(said, gold) for gold in golds))


def _lmms_anls() -> Score:
    function = _module("lmms_eval.api.metrics").anls
    return lambda said, _, golds: float(function(list(golds), [said])["anls"])


def _lmms_vqa() -> Score:
    function = _module("lmms_eval.tasks.vqav2.utils").vqav2_process_results

    def score(said: str, question: Question, golds: Sequence[str]) -> float:
        given = [{"answer": gold, "answer_id": place} for place, gold in enumerate(golds)]
        return float(function({"answers": given, "question_id": 0}, [said])["exact_match"])

    return score


def _lmms_textvqa() -> Score:
    function = _module("lmms_eval.tasks.textvqa.utils").textvqa_process_results
    return lambda said, _, golds: float(
        function({"answers": list(golds), "question_id": 0}, [said])["exact_match"]
    )


def _lmms_mmmu() -> Score:
    module = _module("lmms_eval.tasks._task_utils.mmmu_mcq_utils")

    def score(said: str, question: Question, golds: Sequence[str]) -> float:
        index2ans, letters = module.get_multi_choice_info(list(question.choices))
        picked = module.parse_mmmu_multi_choice_response(said, letters, index2ans)
        return float(picked == letters[question.choices.index(question.label or "")])

    return score


def _lmms_scienceqa() -> Score:
    function = _module("lmms_eval.tasks.scienceqa.utils").sqa_process_results

    def score(said: str, question: Question, golds: Sequence[str]) -> float:
        place = question.choices.index(question.label or "")
        row = {"choices": list(question.choices), "answer": place}
        return float(function(row, [said])["exact_match"])

    return score


def _lmms_mme() -> Score:
    function = _module("lmms_eval.tasks.mme.utils").parse_pred_ans
    return lambda said, question, _: float(function(said) == (question.label or "").lower())


def _lmms_pope() -> Score:
    function = _module("lmms_eval.tasks.pope.utils").pope_process_results

    def score(said: str, question: Question, golds: Sequence[str]) -> float:
        found = function({"answer": question.label, "question_id": 0}, [said])
        return float(found["pope_accuracy"]["score"])

    return score


def _vlm_vqa_eval() -> Any:
    smp, misc = sys.modules["vlmeval.smp"], _module("vlmeval.smp.misc")
    for name in ("process_punctuation", "istype", "listinstr"):
        setattr(smp, name, getattr(misc, name))
    return _module("vlmeval.dataset.utils.vqa_eval")


def _vlm(method: str, dataset: str) -> Callable[[], Score]:
    def build() -> Score:
        module = _vlm_vqa_eval()

        def score(said: str, question: Question, golds: Sequence[str]) -> float:
            line = module.process_line({"answer": str(list(golds)), "prediction": said}, method)
            return float(module.hit_calculate([line], dataset)[0])

        return score

    return build


def _vlm_infer() -> Score:
    function = _module("vlmeval.utils.matching_util").can_infer

    def score(said: str, question: Question, golds: Sequence[str]) -> float:
        letters = [chr(ord("A") + place) for place in range(len(question.choices))]
        picked = function(said, dict(zip(letters, question.choices, strict=True)))
        return float(picked == letters[question.choices.index(question.label or "")])

    return score


def _vlm_yes_no() -> Score:
    _vlm_vqa_eval()
    smp = sys.modules["vlmeval.smp"]
    for name in ("d2df", "load"):
        setattr(smp, name, None)
    function = _module("vlmeval.dataset.utils.yorn").YOrN_Extraction
    return lambda said, question, _: float(function(said).lower() == (question.label or "").lower())


_TABLE: tuple[tuple[str, str, str, str, Callable[[], Score]], ...] = (
    ("lmms-eval", "lmms", "chartqa", "relaxed", _lmms_chartqa),
    ("VLMEvalKit", "vlm", "ChartQA", "relaxed", _vlm("relaxed_accuracy", "ChartQA")),
    ("lmms-eval", "lmms", "anls", "anls", _lmms_anls),
    ("VLMEvalKit", "vlm", "DocVQA", "anls", _vlm("anls", "DocVQA")),
    ("lmms-eval", "lmms", "vqav2", "vqa", _lmms_vqa),
    ("lmms-eval", "lmms", "textvqa", "vqa", _lmms_textvqa),
    ("VLMEvalKit", "vlm", "VQA score", "vqa", _vlm("vqa_score", "TextVQA")),
    ("lmms-eval", "lmms", "mmmu", "choice", _lmms_mmmu),
    ("lmms-eval", "lmms", "scienceqa", "choice", _lmms_scienceqa),
    ("VLMEvalKit", "vlm", "can_infer", "choice", _vlm_infer),
    ("lmms-eval", "lmms", "mme", "yes_no", _lmms_mme),
    ("lmms-eval", "lmms", "pope", "yes_no", _lmms_pope),
    ("VLMEvalKit", "vlm", "YOrN_Extraction", "yes_no", _vlm_yes_no),
    ("VLMEvalKit", "vlm", "accuracy", "exact", _vlm("accuracy", "OCRVQA")),
)
