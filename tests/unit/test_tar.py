"""Tar shards read in place: their members, WebDataset samples, and images of other files' rows."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.data.tar import members
from masters.errors import DataError


def _png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(path: Path, *content: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5  # pyright: ignore
            if form == tarfile.USTAR_FORMAT:
                member.mtime = 1
            tar.addfile(member, io.BytesIO(data))
    return path


def _open(path: Path, **fields: Any) -> Questions:
    return open_questions(SimpleNamespace(kind="webdataset", path=str(path), **fields))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    long = f"{'folder/' * 15}{'x' * 60}.png"
    names = ["a.txt", "b/empty.txt", "b/c.png", long]
    if form != tarfile.USTAR_FORMAT:
        names += ["ü" * 60 + ".txt", "y" * 300]
    content = [(name, name.encode() * (i * 37 % 50)) for i, name in enumerate(names)]
    path = _tar(tmp_path / "x.tar", *content, form=form)
    with tarfile.open(path, "a", format=form) as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd" + "z" * 60
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        last = tarfile.TarInfo("last")
        last.size = 5
        tar.addfile(last, io.BytesIO(b"12345"))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isfile()]
    found = [(member.name, member.offset, member.size) for member in members(path)]
    assert found == expected
    assert [name for name, _, _ in found] == [*names, "last"]


def test_no_tar_file(tmp_path: Path) -> None:
    whole = _tar(tmp_path / "x.tar", ("a.bin", bytes(range(256)) * 40)).read_bytes()
    broken = tmp_path / "y.tar"
    for content, said in (
        (whole[:3000], "it is cut short"),
        (whole[:300], "it is cut short"),
        (gzip.compress(os.urandom(2000)), "it is compressed"),
        (b"\1" * 2048, "this is no header"),
        (whole[:1300], "it is cut short"),
        (b"b" + whole[1:], "this is no header"),
        (b"", "it is empty"),
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=rf"y.tar: at byte [0-9,]+: {said}"):
            list(members(broken))
    with pytest.raises(DataError, match="none.tar: no tar file there; expected one, a folder"):
        _open(tmp_path / "none.tar")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    fields = {"question": "q", "answer": "a", "kind": "k", "choices": ["a", "b"], "more": 1}
    folder = tmp_path / "shards"
    _tar(
        folder / "s-0.tar",
        ("d.x/0.png", _png()),
        ("d.x/0.json", json.dumps(fields).encode()),
        ("d.x/1.json", json.dumps({**fields, "id": "own", "question": "<image>?<image>"}).encode()),
        ("d.x/1.0.png", _png("blue")),
        ("d.x/1.1.JPG", _png("lime")),
        ("d.x/1.npy", b"\xff\xff"),
    )
    _tar(folder / "s-1.tar", ("0.json", json.dumps(fields).encode()), ("0.png", _png("black")))
    return folder


def test_samples(shards: Path) -> None:
    questions = _open(shards)
    assert questions.ids == ["s-0/d.x/0", "own", "s-1/0"]
    assert (questions[0].kind, questions[0].choices, questions[0].meta) == ("k", ("a", "b"), {})
    verify_images(questions)
    colours = [
        [image.getpixel((0, 0)) for image in questions.open_images(question)]
        for question in questions
    ]
    assert colours == [[(255, 0, 0)], [(0, 0, 255), (0, 255, 0)], [(0, 0, 0)]]
    assert questions.find("own") == 1
    pattern = _open(shards / "s-*.tar")
    assert pattern.fingerprint() == questions.fingerprint()
    assert _open(shards / "s-1.tar").ids == ["s-1/0"]
    moved = shards.rename(shards.parent / "moved")
    assert _open(moved).fingerprint() == questions.fingerprint()


def test_texts_beside_the_image(tmp_path: Path) -> None:
    path = _tar(
        tmp_path / "x.tar",
        ("0.jpg", _png()), ("0.txt", b"what? \n"), ("0.cls", b"7"), ("0.note.txt", b"\xff"),
    )  # fmt: skip
    questions = _open(path, columns={"question": "txt", "answer": "cls"})
    assert [(q.text, q.label) for q in questions] == [("what?", "7")]
    with pytest.raises(DataError, match=r"x.tar: sample 1: question 'x/0': no question"):
        _open(path)
    with pytest.raises(DataError, match=r"member '0.note.txt', which cannot be read"):
        _open(path, columns={"question": "note.txt", "answer": "cls"})


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        ([("9.json", b"[1]"), ("9.png", _png())], "broken text", "one list"),
        ([("9.json", b"{")], "broken text", "which cannot be read"),
        ([("9.json", b'{"question": "q", "answer": "a"}')], "no image", "image []"),
        (
            [("9.json", b'{"question": "q", "answer": "a", "id": "own"}'), ("9.png", _png())],
            "duplicate id",
            "an id already used at {shards}/s-0.tar: sample 2",
        ),
        (
            [("9.json", b'{"question": "q", "answer": "a"}'), ("9.png", b"")],
            "broken image",
            "0 bytes",
        ),
        (
            [("9.json", b'{"question": "q", "answer": "a"}'), ("9.png", b"\0" * 2000)],
            "image too large",
            "2,000 bytes; expected at most 1,500",
        ),
    ],
)
def test_bad_samples(
    shards: Path, content: list[tuple[str, bytes]], reason: str, said: str
) -> None:
    _tar(shards / "s-2.tar", ("8.x", b""), *content)
    with pytest.raises(DataError) as caught:
        _open(shards, limit=4, max_image_bytes=1500, columns={"question": "question"})
    assert "no question" in str(caught.value)  # the sample 8 has nothing
    found = _open(shards, on_bad="skip", max_image_bytes=1500)
    assert len(found) == 3
    assert found.skipped == {"no question": 1, reason: 1}
    _tar(shards / "s-2.tar", *content)
    with pytest.raises(DataError) as caught:
        _open(shards, max_image_bytes=1500)
    assert str(caught.value).startswith(f"{shards}/s-2.tar: sample 1: question ")
    assert said.format(shards=shards) in str(caught.value)


def test_rows_with_their_images_in_tar_files(tmp_path: Path) -> None:
    _tar(tmp_path / "tars" / "a.tar", ("x/1.png", _png()), ("2.png", _png("blue")), ("d", b"x"))
    _tar(tmp_path / "tars" / "b.tar", ("x/3.png", _png("lime")), ("d", b"x"))
    path = tmp_path / "data.jsonl"

    def read(*names: str, **fields: Any) -> Questions:
        rows = [{"id": n, "image": n, "question": "q", "answer": "a"} for n in names]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        images = str(tmp_path / "tars" / "*.tar")
        return open_questions(
            SimpleNamespace(kind="jsonl", path=str(path), images=images, **fields)
        )

    questions = read("x/3.png", "2.png")
    verify_images(questions)
    colours = [questions.open_images(q)[0].getpixel((0, 0)) for q in questions]
    assert colours == [(0, 255, 0), (0, 0, 255)]
    with pytest.raises(DataError, match="image '3.png', but there is no such member; expected one"):
        read("3.png")
    with pytest.raises(DataError, match="image 'd', which 2 members are called"):
        read("d")
    assert read("d", "2.png", "../a", on_bad="skip").ids == ["2.png"]
