"""`masters calibrate` without a model: tokens by hand, groups, what is kept, what it is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masters.calibration.groups import _block
from masters.calibration.kept import Kept
from masters.calibration.output import check_writable, mask_yaml, shared_prefix, write_recipe
from masters.calibration.picture import curves, sensitivity
from masters.calibration.recommendation import Measured, Recommendation, recommend
from masters.calibration.request import Request, read_request
from masters.calibration.teacher import Subject, find_subject, folder_name
from masters.calibration.tokens import TokenMeasures, token_measures
from masters.errors import RecipeError, StageError
from masters.evaluation.statistics import Interval
from masters.recipe import load_recipe, resolved_yaml
from masters.training.losses import entropy_from_log_probs

# ---------------------------------------------------------------------------------------- tokens


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def measures(
    whole: torch.Tensor, masked: torch.Tensor, head: torch.Tensor, **more: Any
) -> TokenMeasures:
    targets = more.pop("targets", torch.zeros(len(whole), dtype=torch.long))
    return token_measures(whole, masked, head, targets, **{"vocabulary": len(head), **more})


def test_entropy_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [1.5 * math.log(2), 0.0]
    assert entropy_from_log_probs(p.log()).tolist() == pytest.approx(expected, abs=1e-15)


def test_two_tokens_by_hand() -> None:
    # An identity head: hidden states are logits. P_0 = (1/2, 1/2), P_r = (3/4, 1/4).
    head = torch.eye(2, dtype=torch.float64)
    whole = torch.zeros(1, 2, dtype=torch.float64)
    masked = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    found = measures(whole, masked, head, targets=torch.tensor([1]))
    kl_0 = 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    kl_r = 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)
    assert found.jsd_N.item() == pytest.approx((kl_0 + kl_r) / 2, abs=1e-15)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert found.entropy_N.item() == pytest.approx(entropy, abs=1e-15)
    assert found.kept_N.tolist() == [False]


def test_a_float64_twin_bounds_and_chunks() -> None:
    random = np.random.default_rng(0)
    head = random.normal(size=(37, 8)) * 2
    whole, masked = random.normal(size=(50, 8)), random.normal(size=(50, 8))
    vocabulary = 33  # the last rows are padding
    p, q = (softmax(hidden @ head[:vocabulary].T) for hidden in (whole, masked))
    mix = (p + q) / 2
    jsd = ((p * np.log(p / mix)).sum(-1) + (q * np.log(q / mix)).sum(-1)) / 2
    entropy = -(q * np.log(q)).sum(-1)
    tensors = [torch.from_numpy(value) for value in (whole, masked, head)]
    targets = torch.from_numpy(q.argmax(-1))
    targets[::2] = (targets[::2] + 1) % vocabulary
    for chunk in (7, 1024):
        found = measures(*tensors, vocabulary=vocabulary, targets=targets, chunk=chunk)
        np.testing.assert_allclose(found.jsd_N, jsd, atol=1e-13)
        np.testing.assert_allclose(found.entropy_N, entropy, atol=1e-13)
        assert found.kept_N.tolist() == [False, True] * 25
    assert (jsd > 0).all() and (jsd <= math.log(2)).all()
    assert (entropy > 0).all() and (entropy <= math.log(vocabulary)).all()


def test_far_apart_is_ln_2_and_the_same_is_0() -> None:
    head = torch.eye(2)
    far = measures(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]), head)
    assert far.jsd_N.item() == pytest.approx(math.log(2), abs=1e-6)
    assert far.entropy_N.item() == 0
    same = torch.randn(9, 2)
    assert measures(same, same, head).jsd_N.abs().max() < 1e-7


def test_banned_tokens_are_never_the_next_one() -> None:
    head, logits = torch.eye(3), torch.tensor([[1.0, 3.0, 2.0]])
    for banned, next_one in (((), 1), ((1,), 2), ((1, 2), 0), ((1, 99), 2)):
        found = [
            measures(logits, logits, head, banned=banned, targets=torch.tensor([token]))
            for token in range(3)
        ]
        assert [bool(one.kept_N) for one in found] == [token == next_one for token in range(3)]
        assert len({one.entropy_N.item() for one in found}) == 1


# ---------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.0"),
        ("model.language_model.layers.3.mlp.experts.gate_up_proj[7]",
         "model.language_model.layers.3"),
        ("model.visual.blocks.11.attn.qkv", "model.visual.blocks.11"),
        ("model.visual.patch_embed.proj", "model.visual.patch_embed"),
        ("model.visual.merger.mlp.0", "model.visual.merger.mlp"),
        ("proj", "proj"),
    ],
)  # fmt: skip
def test_blocks(layer: str, block: str) -> None:
    assert _block(layer) == block


def test_shared_prefixes() -> None:
    assert shared_prefix(["model.a.x", "model.ab.y"]) == "model."
    assert shared_prefix(["a", "b"]) == "" == shared_prefix(["model.a"])


# ------------------------------------------------------------------------------- what is kept


def measured(ratio: int, right: int = 90, group: str = "", n: int = 100) -> Measured:
    return Measured(
        ratio=ratio, group=group, correct=(True,) * right + (False,) * (n - right), changed=0.25,
        entropy=Interval(0.5, 0.4, 0.6), jsd=Interval(0.1 + ratio, 0.05 + ratio, 0.2 + ratio),
        zeros=0.3, seconds=1.5,
    )  # fmt: skip


def test_what_was_measured_is_read_back_whole(tmp_path: Path) -> None:
    rows = [measured(0), measured(1000), measured(1000, group="model.layers.0")]
    kept = Kept(tmp_path, {"teacher": "a"})
    kept.add(rows[0], [[1, 2], [3]])
    for row in rows[1:]:
        kept.add(row)
    again = Kept(tmp_path, {"teacher": "a"})
    assert [again.get(row.ratio, row.group) for row in rows] == rows
    assert again.answers == [[1, 2], [3]]
    assert again.get(2000) is None
    assert Kept(tmp_path, {"teacher": "b"}).get(0) is None


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {})
    kept.add(measured(0))
    kept.add(measured(1000))
    kept.path.write_bytes(kept.path.read_bytes()[:-20])
    again = Kept(tmp_path, {})
    assert again.get(0) == measured(0) and again.get(1000) is None
    again.add(measured(1000))
    assert Kept(tmp_path, {}).get(1000) == measured(1000)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {})
    kept.add(measured(0))
    kept.path.write_text(kept.path.read_text() + "{}\n")
    with pytest.raises(StageError, match=r"measured-\w+\.jsonl:2: no measurement"):
        Kept(tmp_path, {})


# ------------------------------------------------------------------------------- what it is told


def request(**changed: Any) -> Request:
    words: dict[str, Any] = {
        "ratios": "0.1,0.2", "sample": 10, "seed": 0, "tolerance": 0.02, "per": (),
        "per_ratio": None, "write": None,
    }  # fmt: skip
    return read_request(**{**words, **changed})


def test_words_become_a_request() -> None:
    found = request(ratios="0.3, 0,0.05,.3", per=["layer", "part"], per_ratio="0.7")
    assert found.ratios == (500, 3000)
    assert found.grains == ("part", "layer")
    assert found.group_ratio == 7000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ratios": "0.1,1.2"}, r"--ratios is 1.2; expected a number in \[0, 1\)"),
        ({"ratios": "0.1,half"}, "--ratios is 'half'"),
        ({"ratios": "0"}, "at least one above 0"),
        ({"ratios": ""}, "at least one above 0"),
        ({"sample": 0}, "--sample is 0"),
        ({"tolerance": 0.0}, "--tolerance is 0.0"),
        ({"tolerance": 2.0}, "--tolerance is 2.0; expected a share"),
        ({"per": ["head"]}, "--per is 'head'; expected one of part, block, layer"),
        ({"per_ratio": "0.2"}, "--per-ratio without --per"),
        ({"per": ["part"], "per_ratio": "0"}, "--per-ratio is 0"),
    ],
)
def test_words_that_mean_nothing(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        request(**changed)


def subject(teacher: str, **changed: Any) -> Subject:
    words: dict[str, Any] = {"name": None, "questions": None, "profile": None, "overrides": ()}
    return find_subject(teacher, **{**words, **changed})


def test_a_teacher_of_a_recipe() -> None:
    found = subject("masters", profile="tiny")
    assert found.from_recipe and found.source.tiny == "qwen3_vl_1m"
    assert found.questions == found.recipe.data.validation
    assert folder_name(found) == "teacher"
    asked = subject("masters", profile="tiny", questions="{kind: scenes, count: 7, seed: 9}")
    assert asked.questions.kind == "scenes" and asked.questions.count == 7
    assert asked.recipe == found.recipe


def test_a_model_of_its_own(tmp_path: Path) -> None:
    inner = tmp_path / "train-1234" / "model"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    for given in (inner, inner.parent):
        found = subject(
            str(given), questions="held.jsonl", overrides=["method.phases.0.mask.parts=[vision]"]
        )
        assert found.source.path == str(inner)
        assert found.questions.kind == "jsonl"
        assert found.mask is not None and found.mask.parts == ("vision",)
        assert folder_name(found) == "train-1234"
    hub = subject("Qwen/Qwen3-VL-2B-Instruct", questions="held.jsonl", profile="tiny")
    assert folder_name(hub) == "Qwen3-VL-2B-Instruct"
    assert hub.source.path == "Qwen/Qwen3-VL-2B-Instruct"


TWO = "models.teachers=[{name: small, path: a/b}, {name: large, path: c/d}]"


@pytest.mark.parametrize(
    ("teacher", "changed", "said"),
    [
        ("nowhere", {"questions": "q.jsonl"}, "nowhere: no such teacher"),
        ("nowhere.yaml", {}, "nowhere.yaml: no such file"),
        ("org/model", {}, "expected --questions"),
        ("org/model", {"questions": "q.jsonl", "name": "x"}, "org/model is a model"),
        ("masters", {"profile": "tiny", "name": "x"}, "no teacher 'x'; expected one of teacher"),
        ("masters", {"profile": "tiny", "questions": "{kind: maps}"}, "'maps'"),
        ("masters", {"profile": "tiny", "overrides": ["data.validation=null"]}, "--questions"),
        (
            "distill",
            {
                "profile": "tiny",
                "overrides": [TWO, "method.phases=[{teacher: small}, {teacher: large}]"],
            },
            "several teachers; expected --teacher with one of small, large",
        ),
    ],
)
def test_a_teacher_that_is_not_there(teacher: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        subject(teacher, **changed)


# ----------------------------------------------------------------------------- what it writes


FOUND = Recommendation(max_ratio=4000, step=500, reason="why")


def test_the_recipe_written_is_the_recipe_with_another_mask(tmp_path: Path) -> None:
    # The profile names masters' phases: lines that extend masters would be overruled by it.
    of_tiny = subject("masters", profile="tiny", overrides=["method.seed=5"])
    file = tmp_path / "calibrated.yaml"
    check_writable(file, of_tiny)
    write_recipe(file, of_tiny, FOUND, "masters calibrate\nwhy")
    assert file.read_text().startswith("# masters calibrate\n# why\n")
    written = load_recipe(file)
    mask = written.method.phases[0].mask
    assert mask is not None and mask.ratios == tuple(range(4000, -1, -500))
    expected = load_recipe(
        "masters",
        "tiny",
        [
            "method.seed=5",
            "method.phases.0.mask.max_ratio='0.4'",
            "method.phases.0.mask.step='0.05'",
        ],
    )
    assert resolved_yaml(written) == resolved_yaml(expected)
    with pytest.raises(RecipeError, match="is there already"):
        check_writable(file, of_tiny)


def test_only_phases_that_mask_this_teacher_change(tmp_path: Path) -> None:
    phases = (
        "method.phases=[{teacher: teacher, mask: null}, "
        "{teacher: other, mask: {max_ratio: '0.2', step: '0.1'}}, "
        "{teacher: teacher, mask: {max_ratio: '0.3', step: '0.1', parts: [language]}}]"
    )
    other = "models.teachers=[{name: teacher, path: a/b}, {name: other, path: c/d}]"
    found = subject("masters", name="teacher", profile="tiny", overrides=[other, phases])
    assert found.mask is not None and found.mask.parts == ("language",)
    for said, expected in (
        (FOUND, (4000, 500)),
        (Recommendation(max_ratio=0, step=None, reason="none"), (0, 1000)),
    ):
        file = tmp_path / f"{said.max_ratio}.yaml"
        write_recipe(file, found, said, "x")
        masks = [phase.mask for phase in load_recipe(file).method.phases]
        assert masks[0] is None and masks[1] is not None and masks[2] is not None
        assert masks[1].ratios == (2000, 1000, 0)
        assert masks[2].parts == ("language",)
        assert (masks[2].max_ratio * 10_000, masks[2].step * 10_000) == expected


@pytest.mark.parametrize(
    ("file", "teacher", "changed", "said"),
    [
        ("a.txt", "masters", {"profile": "tiny"}, "expected a .yaml file"),
        ("no/a.yaml", "masters", {"profile": "tiny"}, "in a folder that is there"),
        ("a.yaml", "org/model", {"questions": "q.jsonl"}, "expected a recipe"),
        ("a.yaml", "distill", {"profile": "tiny"}, "no phase of distill masks teacher"),
    ],
)
def test_what_cannot_be_written(
    file: str, teacher: str, changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_writable(tmp_path / file, subject(teacher, **changed))


def test_what_is_pasted() -> None:
    assert mask_yaml(FOUND) == 'mask: {max_ratio: "0.4", step: "0.05"}'
    assert mask_yaml(Recommendation(max_ratio=0, step=None, reason="")) == 'mask: {max_ratio: "0"}'


def test_pictures_are_drawn_for_every_kind_of_result() -> None:
    rows = [measured(0), measured(1000), measured(2000, right=40)]
    for tolerance in (0.1, 0.001):
        assert curves(rows, recommend(rows, tolerance), tolerance).startswith(b"\x89PNG")
    groups = [measured(1000, group=f"model.layers.{i}.mlp") for i in range(40)]
    assert sensitivity(groups, "block").startswith(b"\x89PNG")
    assert sensitivity(groups[:1], "block").startswith(b"\x89PNG")
