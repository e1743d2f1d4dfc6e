"""docs/families.md says what the table of families and the tests say."""

from __future__ import annotations

import re
from pathlib import Path

import tests.end_to_end.test_families as through_all_stages
import tests.invariant.test_families as invariants
from masters.models.families import FAMILIES
from tests.families import FAMILY_NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def table(heading: str, first: str) -> list[dict[str, str]]:
    """The rows, by column, of the table under a heading whose first line begins with ``first``."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    block = section[section.index(f"| {first} ") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def names(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def test_the_table_of_parts_is_the_codes() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES,
    )

    rows = {names(row["family"])[0]: row for row in table("Where the parts are", "family")}
    assert set(rows) == set(FAMILIES)
    for model_type, family in FAMILIES.items():
        row = rows[model_type]
        assert names(row["transformers class"]) == (CLASSES[model_type],)
        assert hasattr(transformers, CLASSES[model_type])
        assert names(row["language model"]) == (family.language,)
        assert names(row["vision tower"]) == (family.vision,)
        assert names(row["projector"]) == family.projector
        assert names(row["head"]) == (family.head,)
        assert names(row["image id"]) == (family.image_id,)


def test_every_cell_of_family_and_stage_names_a_test_that_runs() -> None:
    heading = "Family and stage, and the test of each"
    rows = table(heading, "family")
    assert sorted(names(row["family"])[0] for row in rows) == sorted(FAMILY_NAMES)
    stages = {"mask", "generate", "judge", "score", "train", "evaluate", "report"}
    assert set(rows[0]) - {"family"} == stages
    numbered = {row[""]: names(row["test"])[0] for row in table(heading, "| test")}
    assert all(hasattr(invariants, test) for test in numbered.values())
    assert hasattr(through_all_stages, "test_all_stages")
    for row in rows:
        for stage in stages:
            marks = row[stage].split()
            assert marks[0] == "A" and set(marks[1:]) <= set(numbered), (row["family"], stage)
