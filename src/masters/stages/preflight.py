"""What can be known to fail before anything is computed: data, models, vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from masters.artifacts import canonical_json
from masters.data.sources import open_questions, verify_images
from masters.specs import ModelRef, StageSpec, TrainSpec


def check(specs: Iterable[StageSpec]) -> None:
    """Looks at every data set and every model on disk that these stages will open.

    Images are decoded, models must be whole vision-language checkpoints, a teacher must share its
    student's vocabulary, and what is to be trained of a student must be there. Models of the hub
    are looked at by the stage that opens them.

    Raises:
        DataError, ModelError: the first thing that a stage would fail on.
    """
    specs = list(specs)
    sources: dict[str, Any] = {}
    models: dict[Path, None] = {}
    for spec in specs:
        for part in _parts(spec):
            if isinstance(part, ModelRef):
                if part.path is not None and (folder := Path(part.path).expanduser()).is_dir():
                    models[folder] = None
            elif hasattr(part, "on_bad"):
                sources.setdefault(canonical_json(part.model_dump(mode="json")), part)
    for source in sources.values():
        verify_images(open_questions(source))
    for folder in models:
        _whole_vlm(folder)
    for spec in specs:
        if isinstance(spec, TrainSpec):
            _shared_vocabulary(spec)
            _trainable(spec)


def _parts(value: object) -> Iterable[BaseModel]:
    """The spec's blocks at any depth."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)


def _whole_vlm(folder: Path) -> None:
    from masters.models.checkpoint import checkpoint_tensors
    from masters.models.load import load_config

    load_config(str(folder))
    checkpoint_tensors(folder)


def _trainable(spec: TrainSpec) -> None:
    if spec.lora is not None or spec.freeze or spec.optimiser.moments != "fp32":
        from masters.stages.trained_student import check_settings

        check_settings(spec)


def _shared_vocabulary(spec: TrainSpec) -> None:
    student, teacher = spec.init, spec.teacher
    if not (isinstance(student, ModelRef) and teacher is not None):
        return
    paths = [Path(ref.path).expanduser() for ref in (student, teacher) if ref.path is not None]
    if len(paths) < 2 or not all(path.is_dir() for path in paths):
        return
    from masters.models.load import check_shared_vocabulary, load_processor

    backend = spec.prompt.image_backend
    ours, theirs = (load_processor(str(path), backend=backend) for path in paths)
    check_shared_vocabulary(theirs, ours)
