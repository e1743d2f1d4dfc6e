"""What a status, a header or a reply means, without a server."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from masters.serving.backoff import Backoff
from masters.serving.chat import ChatRequest, body, read_reply, same_model
from masters.serving.faults import Fault, of_status, retry_after

PNG = b"\x89PNG\r\n\x1a\n and so on"
ASKED = ChatRequest(messages=({"role": "user", "content": "What?"},), max_tokens=5)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (400, {}, "own"),
        (401, {}, "fatal"),
        (402, {}, "fatal"),
        (403, {}, "fatal"),
        (404, {}, "fatal"),
        (408, {}, "again"),
        (409, {}, "again"),
        (413, {}, "own"),
        (422, {}, "own"),
        (429, {}, "busy"),
        (500, {}, "again"),
        (502, {}, "again"),
        (503, {}, "again"),
        (503, {"retry-after": "3"}, "busy"),
        (504, {}, "again"),
        (529, {}, "busy"),
    ],
)
def test_what_a_status_asks_for(status: int, headers: dict[str, str], kind: str) -> None:
    assert of_status(status, headers, "words").kind == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        # The server's own clock counts, wrong as it may be.
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date_without_the_servers_clock() -> None:
    asked = retry_after({"retry-after": formatdate(time.time() + 90, usegmt=True)})
    assert asked is not None
    assert 85 < asked <= 90


def test_backoff_doubles_up_to_its_longest() -> None:
    highest = Backoff(first=1.0, longest=10.0, jitter=lambda: 1.0)
    assert [highest.pause(n) for n in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 10, 10]
    assert Backoff(jitter=lambda: 0.0).pause(9) == 0.0  # full jitter: anything from zero on
    assert Backoff(first=1.0, jitter=lambda: 0.25).pause(3) == 1.0


@pytest.mark.parametrize(
    ("named", "same"),
    [
        ("Qwen/Qwen3-VL-32B", True),
        ("Qwen/Qwen3-VL-32B@main", True),
        ("Qwen/Qwen3-VL-32B:latest", True),
        ("Qwen/Qwen3-VL-32B-2026-05-01", True),
        ("Qwen/Qwen3-VL-32B-Instruct", False),
        ("Qwen/Qwen3-VL-32B-2507", False),  # names of this form are models of their own
        ("Qwen/Qwen3-VL-3", False),
        ("qwen3-vl", False),
    ],
)
def test_which_names_mean_the_model(named: str, same: bool) -> None:
    assert same_model(named, "Qwen/Qwen3-VL-32B") is same


def test_a_request_has_only_what_it_needs() -> None:
    assert body(ASKED, "judge") == {
        "model": "judge",
        "messages": [{"role": "user", "content": "What?"}],
        "max_tokens": 5,
        "temperature": 0.0,
    }


def test_images_stand_before_the_text_of_the_last_user_message() -> None:
    request = ChatRequest(
        messages=(
            {"role": "system", "content": "Look."},
            {"role": "user", "content": "What?"},
        ),
        max_tokens=5,
        images=(PNG, b"\xff\xd8\xffrest"),
        n=2,
        seed=3,
    )
    made = body(request, "judge")
    assert (made["n"], made["seed"]) == (2, 3)
    assert made["messages"][0] == {"role": "system", "content": "Look."}
    first, second, text = made["messages"][1]["content"]
    assert first["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert second["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert text == {"type": "text", "text": "What?"}
    assert request.messages[1]["content"] == "What?"  # the request itself is left as it was


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(messages=({"role": "user", "content": "\ud800"},), max_tokens=5),
        ChatRequest(messages=ASKED.messages, max_tokens=5, images=(b"text",)),
        ChatRequest(messages=({"role": "system", "content": ""},), max_tokens=5, images=(PNG,)),
    ],
)
def test_what_cannot_be_sent_is_the_requests_own_fault(request_: ChatRequest) -> None:
    with pytest.raises(Fault) as fault:
        body(request_, "judge")
    assert fault.value.kind == "own"


def _reply(*contents: str | None, **changes: object) -> bytes:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in contents]
    return json.dumps({"model": "judge", "choices": choices, **changes}).encode()


def test_reading_a_reply() -> None:
    result = read_reply(_reply("yes"), ASKED, "judge")
    assert (result.text, result.finishes, result.error) == ("yes", ("stop",), "")
    two = ChatRequest(messages=ASKED.messages, max_tokens=5, n=2)
    assert read_reply(_reply("a", "b", "c"), two, "judge").texts == ("a", "b")
    assert read_reply(_reply(None), ASKED, "judge").text == ""
    assert read_reply(_reply("yes", model=None), ASKED, "judge").text == "yes"
    # Half a character is something that JSON can carry and no table can store.
    assert read_reply(_reply("a\ud83d"), ASKED, "judge").text == "a\ufffd"
    assert read_reply(_reply("a\U0001f600"), ASKED, "judge").text == "a\U0001f600"


def test_a_server_that_ignores_how_many_answers_are_wanted_is_refused() -> None:
    two = ChatRequest(messages=ASKED.messages, max_tokens=5, n=2)
    with pytest.raises(Fault, match="1 of the 2") as fault:
        read_reply(_reply("a"), two, "judge")
    assert fault.value.kind == "fatal"


def test_a_refusal_is_an_error_of_the_request() -> None:
    refused = {"message": {"content": None, "refusal": "I will not"}, "finish_reason": "stop"}
    result = read_reply(_reply(choices=[refused]), ASKED, "judge")
    assert result.text is None
    assert "I will not" in result.error
