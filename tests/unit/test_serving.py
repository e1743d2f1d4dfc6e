"""The client against a server on loopback that does everything wrong."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from typing import Any

import pytest

from masters.errors import ServerError, ServerGoneError
from masters.serving import Backoff, ChatRequest, ChatResult, Server
from tests.fault_server import Act, FaultServer
from tests.running import environment

SOON = Backoff(first=0.01, longest=0.05)
PASSING: tuple[Act, ...] = (
    (408, {}), (409, {}), (429, {}), (429, {"retry-after-ms": "10"}), (500, {}), (502, {}),
    (503, {}), (503, {"retry-after": "0"}), (529, {}), "drop", "half_json", "half_body",
    "not_utf8", "html", "not_object", "no_choices", "no_message",
)  # fmt: skip


class InstantTime:
    """Time that passes at once when somebody sleeps; what was slept is kept."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def backoff(self, **changes: Any) -> Backoff:
        return Backoff(sleep=self.sleep, clock=self.clock, jitter=lambda: 0.5, **changes)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Not to be sent to a server that the recipe gives no key for.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")


def _server(faulty: FaultServer, **changes: Any) -> Server:
    settings: dict[str, Any] = {"model": "judge", "timeout": 5.0, "backoff": SOON, **changes}
    return Server(url=faulty.url, **settings)


def _requests(questions: Iterable[Any]) -> list[ChatRequest]:
    return [
        ChatRequest(messages=({"role": "user", "content": f"{question}"},), max_tokens=4)
        for question in questions
    ]


def _answered(results: Sequence[tuple[int, ChatResult]], count: int) -> None:
    """Every request once, each with the answer to its own question."""
    assert sorted(index for index, _ in results) == list(range(count))
    assert {index: result.text for index, result in results} == {
        index: f"answer to {index}" for index in range(count)
    }


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_a_fault_that_passes_costs_no_request_and_doubles_none(fault: Act) -> None:
    with FaultServer(lambda question, nth: fault if nth < 2 else "answer") as faulty:
        results = list(_server(faulty, concurrency=5).complete(_requests(range(12))))
        _answered(results, 12)
        assert {faulty.count(f"{index}") for index in range(12)} == {3}
        assert faulty.most_open <= 5


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_reply_that_takes_too_long_is_asked_for_again(fault: Act) -> None:
    with FaultServer(lambda question, nth: fault if nth == 0 else "answer") as faulty:
        _answered(list(_server(faulty, timeout=1.0).complete(_requests(range(6)))), 6)
        assert {faulty.count(f"{index}") for index in range(6)} == {2}


def test_a_storm_of_all_faults_and_the_order_does_not_matter() -> None:
    for seed in (1, 2):
        draw = random.Random(seed)
        faults = {
            (f"{index}", nth): draw.choice([*PASSING, "answer", "answer"])
            for index in range(60)
            for nth in range(4)
        }
        with FaultServer(lambda q, nth, faults=faults: faults.get((q, nth), "answer")) as faulty:
            order = list(range(60))
            draw.shuffle(order)
            results = list(_server(faulty, concurrency=7).complete(_requests(order)))
            assert Counter(index for index, _ in results) == Counter(range(60))
            assert all(result.text == f"answer to {order[i]}" for i, result in results)
            assert Counter(faulty.answered.values()) == {1: 60}
            assert faulty.most_open <= 7


def test_results_come_as_they_come_and_as_many_at_once_as_allowed() -> None:
    slow = threading.Event()

    def script(question: str, nth: int) -> Act:
        if question == "0":
            slow.wait(5)
        return "answer"

    with FaultServer(script, hold=0.02) as faulty:
        results = _server(faulty, concurrency=4).complete(_requests(range(24)))
        early = [next(results)[0] for _ in range(23)]
        assert 0 not in early  # the slow one holds up nobody
        slow.set()
        assert [index for index, _ in results] == [0]
        assert faulty.most_open == 4


@pytest.mark.parametrize("fault", [(400, {}), (413, {}), (422, {}), "filtered"], ids=str)
def test_a_fault_of_one_request_is_its_own_and_not_tried_again(fault: Act) -> None:
    with FaultServer(lambda question, nth: fault if question == "3" else "answer") as faulty:
        results = dict(_server(faulty).complete(_requests(range(6))))
        assert results[3].text is None
        assert results[3].cause == ("withheld" if fault == "filtered" else f"status {fault[0]}")
        assert all(results[i].text == f"answer to {i}" for i in range(6) if i != 3)
        assert faulty.count("3") == 1


def test_what_cannot_be_sent_stops_no_other() -> None:
    with FaultServer() as faulty:
        results = dict(_server(faulty).complete(_requests([0, "\ud800", 2])))
        assert [results[i].text for i in range(3)] == ["answer to 0", None, "answer to 2"]
        assert results[1].cause == "cannot be sent"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((401, {}), "The key was refused: set the variable that runtime.server.key_variable"),
        ((403, {}), "runtime.server.key_variable"),
        ((404, {}), "runtime.server.url"),
        ("wrong_model", "answered as 'another'"),
    ],
)
def test_what_every_request_would_meet_stops_at_once(fault: Act, says: str) -> None:
    with FaultServer(lambda question, nth: fault if question == "9" else "answer") as faulty:
        server = _server(faulty, concurrency=1, key="sk-very-secret")
        results = []
        with pytest.raises(ServerError) as stopped:
            results.extend(server.complete(_requests(range(12))))
        assert not isinstance(stopped.value, ServerGoneError)
        for words in (says, faulty.url, "'judge'"):
            assert words in str(stopped.value)
        # The server repeats the key in its error; nobody else does.
        assert "sk-very-secret" not in f"{stopped.value} {server!r}"
        assert faulty.headers[0]["authorization"] == "Bearer sk-very-secret"
        assert faulty.count("9") == 1


def test_results_before_a_stop_were_handed_out() -> None:
    with FaultServer(lambda question, nth: (401, {}) if question == "9" else "answer") as faulty:
        results: list[tuple[int, ChatResult]] = []
        with pytest.raises(ServerError, match="No key was sent"):
            for result in _server(faulty, concurrency=1).complete(_requests(range(12))):
                results.append(result)
        _answered(results, 9)
        assert "sk-of-another-service" not in str(faulty.headers)


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_retry_after_holds_for_every_request(form: str) -> None:
    asked = {
        "seconds": {"retry-after": "30"},
        "milliseconds": {"retry-after-ms": "30000", "retry-after": "1"},
        "date": {"retry-after": formatdate(time.time() + 31, usegmt=True)},
    }[form]
    instant = InstantTime()
    refused = threading.Event()

    def script(question: str, nth: int) -> Act:
        if question == "2" and nth == 0:
            refused.set()
            return (429, asked)
        if question in ("0", "1"):  # open when the pause begins, done when it is known
            refused.wait(5)
            time.sleep(0.5)
        return "answer"

    with FaultServer(script, clock=instant.clock) as faulty:
        server = _server(faulty, concurrency=3, backoff=instant.backoff())
        _answered(list(server.complete(_requests(range(9)))), 9)
        assert {question for _, question in faulty.asked[:3]} == {"0", "1", "2"}
        assert len(faulty.asked) == 10
        assert min(stamp for stamp, _ in faulty.asked[3:]) >= 1000.0 + 29


def test_a_server_that_wants_an_hour_counts_as_gone() -> None:
    asked = (429, {"retry-after": "3600"})
    with (
        FaultServer(lambda question, nth: asked) as faulty,
        pytest.raises(ServerGoneError, match="3600 s"),
    ):
        list(_server(faulty).complete(_requests(range(3))))


def test_a_server_busy_with_others_uses_up_no_attempt() -> None:
    def script(question: str, nth: int) -> Act:
        return (429, {}) if question == "0" and len(faulty.answered) < 40 else "answer"

    with FaultServer(script, hold=0.01) as faulty:

        async def sleep(seconds: float) -> None:
            enough = min(40, len(faulty.answered) + 2)
            while len(faulty.answered) < enough:
                await asyncio.sleep(0.005)

        server = _server(faulty, concurrency=2, attempts=2, backoff=Backoff(sleep=sleep))
        _answered(list(server.complete(_requests(range(50)))), 50)
        assert faulty.count("0") > 2 * 2  # more than two rounds of its own would have had


def test_a_server_that_dies_for_good() -> None:
    results: list[tuple[int, ChatResult]] = []
    died = threading.Event()

    def script(question: str, nth: int) -> Act:
        if len(faulty.answered) >= 20 and not died.is_set():
            died.set()
            threading.Thread(target=faulty.stop).start()
        return "drop" if died.is_set() else "answer"

    with FaultServer(script) as faulty:
        server = _server(faulty, concurrency=4, attempts=3)
        with pytest.raises(ServerGoneError, match="3 attempts in a row") as gone:
            for result in server.complete(_requests(range(200))):
                results.append(result)
        assert faulty.url in str(gone.value)
        # Handed out: all that was answered, and nothing that was not.
        handed = [index for index, _ in results]
        assert len(handed) == len(set(handed)) >= 20
        assert {f"{index}" for index in handed} == set(faulty.answered)
        assert all(result.text == f"answer to {index}" for index, result in results)


@pytest.mark.parametrize("until", ["first wait", "last wait", "only one has attempts left"])
def test_a_server_that_comes_back_is_survived(until: str) -> None:
    """Down from the 20th answer on; 8 requests at once, with 3 attempts and so 2 waits each."""
    down = threading.Event()
    slept = 0

    async def sleep(seconds: float) -> None:
        nonlocal slept
        if not down.is_set() or faulty.running:
            return
        slept += 1
        if slept == 1 and until == "only one has attempts left":
            await asyncio.sleep(0.5)  # the others wait for nothing and have none left by now
            assert slept == 15
            faulty.start()
        elif slept == {"first wait": 1, "last wait": 15}.get(until):
            faulty.start()

    def script(question: str, nth: int) -> Act:
        if len(faulty.answered) >= 20 and not down.is_set():
            down.set()
            faulty.stop()
        return "answer"

    with FaultServer(script) as faulty:
        backoff = Backoff(sleep=sleep, jitter=lambda: 1.0)
        server = _server(faulty, concurrency=8, attempts=3, backoff=backoff)
        results = list(server.complete(_requests(range(60))))
        assert down.is_set()
        _answered(results, 60)


@pytest.mark.parametrize("others", [0, 12])
def test_a_request_that_no_server_can_answer_stops_nobody(others: int) -> None:
    """Alone or among others: the server lives, so the error is the request's own."""
    with FaultServer(lambda question, nth: (500, {}) if question == "0" else "answer") as faulty:
        server = _server(faulty, concurrency=2, attempts=3)
        results = dict(server.complete(_requests(range(1 + others))))
        assert results[0].text is None
        assert results[0].cause == "unanswered"
        assert "status 500" in results[0].error
        assert faulty.count("0") == 6
        assert all(results[i].text == f"answer to {i}" for i in range(1, 1 + others))


def test_stopping_early_stops_the_requests() -> None:
    with FaultServer(hold=0.02) as faulty:
        results = _server(faulty, concurrency=2).complete(_requests(range(500)))
        next(results)
        results.close()  # type: ignore[attr-defined]
        seen = len(faulty.asked)
        time.sleep(0.2)
        assert len(faulty.asked) <= seen + 1
        assert not [t for t in threading.enumerate() if t.name == "masters-serving"]


def test_ctrl_c_stops_while_everything_hangs() -> None:
    code = (
        "import sys; from masters.serving import ChatRequest, Server\n"
        "request = ChatRequest(messages=({'role': 'user', 'content': 'x'},), max_tokens=1)\n"
        "list(Server(url=sys.argv[1], model='judge', timeout=60).complete([request] * 50))"
    )
    with FaultServer(lambda question, nth: "hang") as faulty:
        asking = subprocess.Popen(
            [sys.executable, "-c", code, faulty.url],
            env=environment(), stderr=subprocess.PIPE, text=True,
            # A job in the background is started deaf to interrupts, and so are its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        until = time.monotonic() + 60
        while not faulty.asked and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)
        interrupted = time.monotonic()
        asking.send_signal(signal.SIGINT)
        _, errors = asking.communicate(timeout=30)
        assert time.monotonic() - interrupted < 10  # the answers would take 30 s
        assert "KeyboardInterrupt" in errors
        assert asking.returncode != 0


def test_no_request_no_connection() -> None:
    assert list(Server(url="http://127.0.0.1:9/v1", model="judge").complete([])) == []


def test_check_of_a_server_that_is_right() -> None:
    with FaultServer() as faulty:
        assert _server(faulty).check() == ("judge",)
        faulty.script = lambda question, nth: "drop" if nth < 2 else "answer"
        assert _server(faulty).check() == ("judge",)
        # A server without a list, or one that answers with the revision it has looked up.
        faulty.listing = (404, {})
        assert _server(faulty).check() == ()
    with FaultServer(lambda question, nth: "revision", served="judge") as faulty:
        faulty.listing = "not_object"
        assert _server(faulty).check() == ()


@pytest.mark.parametrize("act", ["wrong_model", "echo", (404, {}), (400, {})], ids=str)
def test_check_says_what_is_served_instead(act: Act) -> None:
    with FaultServer(lambda question, nth: act, served="Qwen/Qwen3-VL-2B") as faulty:
        with pytest.raises(ServerError, match="It serves 'Qwen/Qwen3-VL-2B'") as refused:
            _server(faulty).check()
        assert faulty.url in str(refused.value)
        assert "'judge'" in str(refused.value)


def test_check_of_a_server_that_is_not_there_or_refuses_the_key() -> None:
    with FaultServer(lambda question, nth: (401, {})) as faulty:
        server = _server(faulty)
        with pytest.raises(ServerError, match="runtime.server.key_variable"):
            server.check()
    with pytest.raises(ServerGoneError, match="runtime.server.url"):
        server.check()  # stopped by now


@pytest.mark.parametrize(
    "settings", [{"url": "localhost:8000"}, {"attempts": 0}, {"concurrency": 0}, {"timeout": 0}]
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ServerError, match=f"runtime.server.{next(iter(settings))}"):
        Server(**{"url": "http://127.0.0.1:9/v1", "model": "judge", **settings})


def test_a_password_in_the_address_is_not_shown() -> None:
    server = Server(url="http://me:hidden@127.0.0.1:9/v1", model="judge", attempts=1, backoff=SOON)
    with pytest.raises(ServerGoneError) as gone:
        list(server.complete(_requests([0])))
    assert "hidden" not in str(gone.value)
