"""Images from strangers: turned, flattened and converted as they should be, or refused by name."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from masters.data.bad_rows import BadRowError
from masters.data.decode import ImageLimits, check_image, decode_image
from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _decoded(data: bytes, **limits: int) -> Image.Image:
    return decode_image(data, "x", ImageLimits(**limits))


def _halves() -> Image.Image:
    """Wider than high, the left half red and the right half blue."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    return image


def _near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    return all(abs(a - b) <= 12 for a, b in zip(image.getpixel(place), colour, strict=True))  # pyright: ignore


# ---------------------------------------------------------------------------------- converted


@pytest.mark.parametrize(
    ("orientation", "size", "red", "blue"),
    [
        (1, (32, 16), (2, 2), (29, 2)),
        (3, (32, 16), (29, 13), (2, 13)),  # upside down
        (6, (16, 32), (2, 2), (2, 29)),  # a quarter clockwise
        (8, (16, 32), (2, 29), (2, 2)),  # a quarter anticlockwise
    ],
)
def test_exif_orientation_is_applied(
    orientation: int, size: tuple[int, int], red: tuple[int, int], blue: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = _decoded(_encoded(_halves(), "JPEG", quality=95, exif=exif))
    assert image.size == size
    assert _near(image, red, (254, 0, 0))
    assert _near(image, blue, (0, 0, 254))


def test_broken_exif_costs_nothing_but_the_orientation() -> None:
    data = _encoded(_halves(), "JPEG", quality=95, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert _decoded(data).size == (32, 16)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    data = _encoded(_halves().convert("CMYK"), kind)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "CMYK"
    image = _decoded(data)
    assert image.mode == "RGB"
    assert _near(image, (4, 8), RED)
    assert _near(image, (28, 8), BLUE)


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    for image in (_decoded(_encoded(clear)), _decoded(_encoded(clear, "WEBP", lossless=True))):
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == RED
        assert image.getpixel((1, 0)) == (127, 127, 127)
        assert image.getpixel((3, 3)) == (255, 255, 255)
    grey = _decoded(_encoded(clear.convert("LA")))
    assert grey.getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    image = _decoded(_encoded(palette, transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), BLUE]
    assert _decoded(_encoded(palette)).getpixel((0, 0)) == (0, 0, 0)


def test_grey_of_sixteen_bits_keeps_its_shades() -> None:
    ramp = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = _decoded(_encoded(Image.fromarray(ramp), kind))
        assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]
    one_bit = _decoded(_encoded(Image.new("1", (2, 2), 1)))
    assert one_bit.getpixel((0, 0)) == (255, 255, 255)
    unknown = _encoded(Image.fromarray(np.array([[0.0, 7.5]], dtype=np.float32)), "TIFF")
    with pytest.raises(BadRowError, match="broken image") as caught:
        _decoded(unknown)
    assert "without a known range" in caught.value.got


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.n_frames == 3  # pyright: ignore
    check_image(data, "x", ImageLimits())
    assert _decoded(data).getpixel((4, 4)) == RED


# ------------------------------------------------------------------------------------ refused


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def _bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000, 9)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("side", [10_000, 12_000, 40_000])
@pytest.mark.parametrize("look", [_decoded, lambda data: check_image(data, "x", ImageLimits())])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(
    side: int, look: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above our limit, above where Pillow warns, above where it refuses by itself."""
    decoded: list[object] = []
    for name in ("load", "verify", "load_prepare"):
        monkeypatch.setattr(PngImageFile, name, lambda *given: decoded.append(given))
    data = _bomb(side)
    assert len(data) < 1000
    with pytest.raises(BadRowError, match="too many pixels") as caught:
        look(data)
    assert "at most 64,000,000" in caught.value.expected
    assert decoded == []


def test_limits_can_be_set() -> None:
    data = _encoded(Image.new("RGB", (100, 100)))
    assert _decoded(data, pixels=10_000, bytes=len(data)).size == (100, 100)
    with pytest.raises(BadRowError, match="too many pixels"):
        _decoded(data, pixels=9_999)
    with pytest.raises(BadRowError, match="image too large"):
        _decoded(data, bytes=len(data) - 1)


def _eps() -> bytes:
    return _encoded(Image.new("RGB", (4, 4)), "EPS")


@pytest.mark.parametrize("data", [b"<html>404</html>", b"", _eps()], ids=["html", "empty", "eps"])
def test_what_is_no_image_or_starts_a_program(data: bytes) -> None:
    with pytest.raises(BadRowError, match="broken image"):
        _decoded(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_cut_short(kind: str) -> None:
    whole = _encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    _decoded(whole)
    for data in (whole[: len(whole) // 2], whole[:12]):
        with pytest.raises(BadRowError, match="broken image"):
            _decoded(data)


# ---------------------------------------------------------------------------- paths, in a source


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "a.png", folder / "sub" / "b.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(path)
    return folder


def _open(folder: Path, *names: str, **fields: Any) -> Questions:
    rows = [{"id": n, "image": n, "question": "q", "answer": "a"} for n in names]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_questions(SimpleNamespace(kind="jsonl", path=str(path), **fields))


def test_paths_that_stay_inside(data: Path) -> None:
    (data / "link.png").symlink_to(data / "sub" / "b.png")
    (data / "folder").symlink_to(data / "sub")
    names = ("a.png", "./a.png", "sub/../a.png", "link.png", "folder/b.png")
    questions = _open(data, *names)
    verify_images(questions)
    assert len(questions) == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", "image outside of its folder"),
        ("sub/../../secret.png", "image outside of its folder"),
        ("{root}/secret.png", "image outside of its folder"),
        ("{root}/data/a.png", "image outside of its folder"),
        ("link.png", "image outside of its folder"),
        ("folder/secret.png", "image outside of its folder"),
        ("..", "image outside of its folder"),
        ("sub", "missing image"),
        ("a\0.png", "missing image"),
        ("pipe.png", "missing image"),
        ("empty.png", "broken image"),
        ("http://example.org/a.png", "image on the web"),
        ("HTTPS://example.org/a.png", "image on the web"),
        ("file:///etc/passwd", "image on the web"),
    ],
)
def test_paths_that_are_refused(data: Path, name: str, reason: str) -> None:
    (data / "link.png").symlink_to(data.parent / "secret.png")
    (data / "folder").symlink_to(data.parent)
    (data / "empty.png").touch()
    os.mkfifo(data / "pipe.png")
    name = name.format(root=data.parent)
    with pytest.raises(DataError) as caught:
        _open(data, "a.png", name)
    assert str(caught.value).startswith(f"{data / 'data.jsonl'}:2: question {name!r}: image")
    questions = _open(data, "a.png", name, on_bad="skip")
    assert (questions.ids, questions.skipped) == (["a.png"], {reason: 1})


class _Web(BaseHTTPRequestHandler):
    """Serves one picture, large ones, lies about their lengths, and redirects."""

    asked: list[str] = []
    picture = _encoded(Image.new("RGB", (8, 8), "red"))

    def do_GET(self) -> None:  # noqa: N802
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none.png" else 200)
        if self.path == "/cut.png":
            self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"x" * 5000 if self.path == "/large.png" else self.picture)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MASTERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    _Web.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls_where_they_are_allowed(data: Path, web: str) -> None:
    names = (f"{web}/a.png", "a.png", f"{web}/to/{web}/b.png", f"{web}/a.png?b")
    with pytest.raises(DataError, match="nothing is fetched unless the source says so"):
        _open(data, *names)
    assert _Web.asked == []
    questions = _open(data, *names, allow_urls=True)
    asked = ["/a.png", f"/to/{web}/b.png", "/b.png", "/a.png?b"]
    assert _Web.asked == asked
    verify_images(questions)
    assert questions.open_images(questions[2])[0].getpixel((0, 0)) == RED
    again = _open(data, *names, allow_urls=True)
    assert again.fingerprint() == questions.fingerprint()
    assert _Web.asked == asked, "nothing is fetched twice"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.png", "image not fetched"),
        ("/cut.png", "image not fetched"),
        ("/large.png", "image too large"),
        ("/to/file:///etc/passwd", "image not fetched"),
        ("/to/ftp://127.0.0.1/a.png", "image not fetched"),
        (":0/a.png", "image not fetched"),
    ],
)
def test_urls_that_give_no_image(data: Path, web: str, path: str, reason: str) -> None:
    fields = {"allow_urls": True, "max_image_bytes": 4000}
    with pytest.raises(DataError, match="data.jsonl:2: question"):
        _open(data, "a.png", web + path, **fields)
    assert _open(data, "a.png", web + path, on_bad="skip", **fields).skipped == {reason: 1}
    assert not [path for path in (data.parent / "cache").rglob("*") if path.is_file()]
    with pytest.raises(DataError, match="question 'file:///etc/passwd': image"):
        _open(data, "file:///etc/passwd", **fields)


def test_limits_of_a_source(data: Path) -> None:
    Image.new("RGB", (100, 100)).save(data / "large.png")
    size = (data / "large.png").stat().st_size
    with pytest.raises(DataError, match=f"question 'large.png': image large.png of {size} bytes"):
        _open(data, "a.png", "large.png", max_image_bytes=size - 1)
    questions = _open(data, "a.png", "large.png", max_image_pixels=9_999)
    for look in (verify_images, lambda q: q.open_images(q[1])):
        with pytest.raises(DataError, match=r"'large.png': image .* of 100 x 100 pixels; expected"):
            look(questions)


def test_a_file_that_grows_after_it_was_checked(data: Path) -> None:
    questions = _open(data, "a.png", max_image_bytes=1000)
    (data / "a.png").write_bytes(b"\0" * 10_000)
    with pytest.raises(DataError, match="image .*a.png of 1,001 bytes; expected at most 1,000"):
        questions.open_images(questions[0])
