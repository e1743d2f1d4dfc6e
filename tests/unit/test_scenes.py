"""Rendered scenes: pure in (seed, i), balanced, answerable from the picture, fast."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from masters.data.questions import Question
from masters.data.scene_pictures import COLOURS
from masters.data.scenes import (
    KINDS,
    PLACES,
    SceneQuestions,
    Wording,
    scene_vocabulary,
    wordings,
)
from masters.errors import DataError
from masters.rewards.verifiers import verify


def test_question_is_a_function_of_seed_and_index() -> None:
    long, short = SceneQuestions(count=50, seed=3), SceneQuestions(count=7, seed=3)
    assert [short[i] for i in range(7)] == [long[i] for i in range(7)]
    np.testing.assert_array_equal(short.pixels(6), long.pixels(6))
    assert long[4].id == "scene-3-4"
    assert long[4].images == ("scene:3:4",)
    assert long.ids == [question.id for question in long]
    assert len(long) == 50
    assert long.skipped == {}


def test_other_seeds_show_other_scenes() -> None:
    def pictures(seed: int) -> set[bytes]:
        source = SceneQuestions(count=300, seed=seed)
        return {source.pixels(i).tobytes() for i in range(300)}

    first, second = pictures(0), pictures(1)
    assert len(first) == 300
    assert not first & second


def test_labels_are_what_the_scene_shows() -> None:
    source = SceneQuestions(count=400, seed=11)
    seen = Counter()
    for index, question in enumerate(source):
        scene = source.scene(index)
        shown = [cell for cell in scene.cells if cell is not None]
        assert 1 <= len(shown) <= (8 if question.kind == "count" else 6)
        place = next((p for p in PLACES if p in question.text), None)
        if question.kind == "count":
            _, _, colour, things, *_ = question.text.split()
            shape = {"crosses": "cross", "shapes": None}.get(things, things.removesuffix("s"))
            n = sum(c == colour and shape in (None, s) for s, c in shown)
            assert question.label == ("zero", "one", "two", "three", "four")[n]
        else:
            assert place is not None
            cell = scene.cells[PLACES.index(place)]
            assert cell is not None
            expected = {"colour": cell[1], "shape": cell[0], "describe": f"{cell[1]} {cell[0]}"}
            assert question.label == expected[question.kind]
        seen[question.kind] += 1
    assert seen == dict.fromkeys(KINDS, 100)


def test_pixels_show_the_cells() -> None:
    source = SceneQuestions(count=60, seed=5)
    for index in range(60):
        picture = source.pixels(index).astype(int)
        assert picture.shape == (48, 48, 3)
        for place, cell in enumerate(source.scene(index).cells):
            top, left = place // 3 * 16, place % 3 * 16
            patch = picture[top : top + 16, left : left + 16].reshape(-1, 3)
            drawn = patch[(patch != picture[0, 0]).any(axis=1)]
            if cell is None:
                assert len(drawn) == 0
                continue
            assert len(drawn) > 20
            near = {name: abs(drawn[0] - rgb).sum() for name, rgb in COLOURS.items()}
            assert min(near, key=lambda name: near[name]) == cell[1]
            assert len(drawn) < 200


def test_shapes_are_told_apart_by_area_and_symmetry() -> None:
    from masters.data.scene_pictures import render

    stencils = {}
    for shape in ("circle", "square", "triangle", "cross"):
        picture = render([(shape, "black"), *[None] * 8], seed=0, index=0, side=48)
        stencils[shape] = (picture[:16, :16, 0] < 100).tobytes()
    assert len(set(stencils.values())) == 4


def test_counts_are_balanced() -> None:
    source = SceneQuestions(count=1000, seed=0, kinds=["count"])
    counts = Counter(question.label for question in source)
    assert set(counts) == {"zero", "one", "two", "three", "four"}
    # 200 expected each, standard deviation 12.6.
    assert max(counts.values()) < 250
    assert min(counts.values()) > 150


def test_what_is_not_counted_does_not_tell_the_count() -> None:
    source = SceneQuestions(count=4000, seed=0, kinds=["count"])
    number = [("zero", "one", "two", "three", "four").index(q.label or "") for q in source]
    full = [sum(c is not None for c in source.scene(i).cells) for i in range(4000)]
    others = np.array(full) - np.array(number)
    asked = np.array(number) > 0  # none counted and none beside would be an empty picture
    assert abs(np.corrcoef(np.array(number)[asked], others[asked])[0, 1]) < 0.08
    assert set(others[asked]) == {0, 1, 2, 3, 4}


def test_varied_wording_keeps_the_label_and_is_judged_right() -> None:
    plain = SceneQuestions(count=400, seed=2)
    varied = SceneQuestions(count=400, seed=2, wording="varied")
    used: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
    for bare, worded in zip(plain, varied, strict=True):
        assert bare.label == worded.label
        assert bare.text == worded.text
        assert bare.training_label is None
        assert worded.training_label is not None
        assert verify("content", worded.training_label, worded).reason == "match"
        assert verify("auto", worded.training_label, worded).reason == "match"
        used[worded.kind][len(worded.training_label.split())] += 1
    assert all(len(lengths) >= 3 for lengths in used.values())


def test_wordings_of_another_label_are_judged_wrong() -> None:
    varied = SceneQuestions(count=200, seed=2, wording="varied", kinds=["colour"])
    for first, second in zip(varied, list(varied)[1:], strict=False):
        if first.label != second.label:
            assert verify("content", second.training_label or "", first).reward == 0


def test_vocabulary_covers_every_sentence() -> None:
    known = set(scene_vocabulary())
    for wording in ("word", "varied"):
        for question in SceneQuestions(count=400, seed=9, wording=wording):
            assert question.text in known
            assert (question.training_label or question.label) in known
    assert len(known) < 2000
    assert all(wordings(kind)[0] == "{label}" for kind in KINDS)


def test_image_belongs_to_its_source() -> None:
    source = SceneQuestions(count=5, seed=1)
    (picture,) = source.open_images(source[2])
    assert (picture.size, picture.mode) == ((48, 48), "RGB")
    with pytest.raises(DataError, match=r"question 'x': image is 'scene:2:0'; expected 'scene:1:"):
        source.open_images(Question(id="x", text="?", images=("scene:2:0",)))
    with pytest.raises(DataError, match="expected 'scene:1:<0 to 4>'"):
        source.open_images(Question(id="x", text="?", images=("scene:1:5",)))
    with pytest.raises(IndexError):
        source[5]
    assert source[-1] == source[4]


@pytest.mark.parametrize(
    ("count", "kinds", "wording", "image", "text"),
    [
        (0, None, "word", 48, "count is 0; expected 1 or more"),
        (1, ["size"], "word", 48, "kinds are .'size'.; expected different ones out of colour"),
        (1, [], "word", 48, "kinds are "),
        (1, ["count", "count"], "word", 48, "kinds are "),
        (1, None, "long", 48, "wording is 'long'; expected one of word, label_first, varied"),
        (1, None, "word", 50, "image is 50 pixels; expected a multiple of 3"),
    ],
)
def test_impossible_settings(
    count: int, kinds: list[str] | None, wording: Wording, image: int, text: str
) -> None:
    with pytest.raises(DataError, match=text):
        SceneQuestions(count=count, seed=0, kinds=kinds, wording=wording, image=image)


def test_fingerprint_moves_with_every_setting() -> None:
    sources = [
        SceneQuestions(count=20, seed=0),
        SceneQuestions(count=21, seed=0),
        SceneQuestions(count=20, seed=1),
        SceneQuestions(count=20, seed=0, wording="varied"),
        SceneQuestions(count=20, seed=0, kinds=["colour", "shape"]),
        SceneQuestions(count=20, seed=0, image=96),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert sources[0].fingerprint() == SceneQuestions(count=20, seed=0).fingerprint()


def test_a_question_and_its_picture_take_under_a_millisecond() -> None:
    source = SceneQuestions(count=300, seed=0)
    start = time.process_time()
    for index in range(300):
        source.open_images(source[index])
    assert (time.process_time() - start) / 300 < 1e-3


def test_label_first_wordings_begin_with_the_label_and_are_judged_right() -> None:
    worded = SceneQuestions(count=400, seed=3, wording="label_first")
    seen = Counter()
    for question in worded:
        bare, label = question.label or "", question.training_label or ""
        assert bare and f"{label} ".startswith(f"{bare} ")
        assert verify("auto", label, question).reward == 1
        longer = f"{bare} in all" if question.kind == "count" else f"{bare} it is"
        assert verify("auto", longer, question).reward == 1  # whatever this question's own wording
        seen[question.kind, label == bare] += 1
    assert all(10 < seen[kind, True] < 45 for kind in KINDS)  # of 100, one in four
