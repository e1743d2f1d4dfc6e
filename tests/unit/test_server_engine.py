"""Responses from a server that ignores ``n``, refuses it, fails, and answers out of order."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from masters.data.questions import Question, Turn
from masters.errors import ServerGoneError
from masters.generation.engine import Completion
from masters.generation.pictures import png_files
from masters.generation.sampling import SampleKey, Sampling
from masters.generation.server_engine import ChatQuestion, ServerEngine, question_messages
from masters.models.encode import PromptText
from masters.serving import Backoff, Server
from tests.fault_server import Act, FaultServer

END = 7
SAMPLING = Sampling(max_new_tokens=16)


class Characters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        assert options == {"add_special_tokens": False, "split_special_tokens": True}
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def keys(question: str, samples: int = 3) -> tuple[SampleKey, ...]:
    return tuple(
        SampleKey(seed=1, question_id=question, source="teacher", ratio=0, round=0, sample=s)
        for s in range(samples)
    )


def asked(names: Sequence[str], samples: int = 3) -> list[ChatQuestion]:
    return [
        ChatQuestion(
            messages=lambda name=name: ({"role": "user", "content": name},),
            keys=keys(name, samples),
        )
        for name in names
    ]


def engine(server: FaultServer, *, logprobs: bool = False) -> ServerEngine:
    soon = Backoff(first=0.01, longest=0.05)
    client = Server(url=server.url, model="judge", timeout=5, backoff=soon, attempts=4)
    return ServerEngine(client, Characters(), end=END, logprobs=logprobs)


def texts(results: Sequence[Sequence[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in own] for own in results]


NAMES = [f"q{i}" for i in range(12)]
EXPECTED = [[f"{name}:{key.engine_seed}" for key in keys(name)] for name in NAMES]


def test_samples_are_asked_for_together_each_with_its_seed() -> None:
    with FaultServer(lambda question, nth: "many") as server:
        results = engine(server).generate(asked(NAMES), SAMPLING)
        assert texts(results) == EXPECTED
        assert len(server.asked) == len(NAMES)
    first = results[0][0]
    assert first.token_ids == [*map(ord, first.text), END] and first.finish == "stop"
    assert first.logprobs is None
    assert [c.seed for c in results[0]] == [key.engine_seed for key in keys("q0")]
    assert results[0][1].seed == first.seed + 1  # pyright: ignore[reportOptionalOperand]


def test_a_server_that_ignores_n_is_topped_up_and_then_asked_one_by_one() -> None:
    with FaultServer(lambda question, nth: "one") as server:
        asking = engine(server)
        assert texts(asking.generate(asked(NAMES), SAMPLING)) == EXPECTED
        assert len(server.asked) == 3 * len(NAMES), "one for three, two for one each"
        assert texts(asking.generate(asked(NAMES), SAMPLING)) == EXPECTED
        assert not any("n" in body for body in server.bodies[3 * len(NAMES) :])


def test_a_server_that_refuses_n_is_asked_one_by_one() -> None:
    with FaultServer(lambda question, nth: "one_at_a_time") as server:
        assert texts(engine(server).generate(asked(NAMES), SAMPLING)) == EXPECTED


def test_faults_lose_nothing_and_change_no_order() -> None:
    passing: tuple[Act, ...] = (
        (429, {"retry-after-ms": "5"}), (503, {}), "drop", "half_json", "half_body", "html",
        "no_choices",
    )  # fmt: skip

    def script(question: str, nth: int) -> Act:
        return passing[int(question[1:]) % len(passing)] if nth == 0 else "many"

    with FaultServer(script) as server:
        assert texts(engine(server).generate(asked(NAMES), SAMPLING)) == EXPECTED
        assert all(count == 1 for count in server.answered.values())


def test_a_sample_that_cannot_be_had_fails_alone() -> None:
    def script(question: str, nth: int) -> Act:
        return {"q1": "filtered", "q2": "tool", "q3": (400, {})}.get(question, "many")

    with FaultServer(script) as server:
        results = engine(server).generate(asked(["q0", "q1", "q2", "q3"], samples=2), SAMPLING)
    assert [c.finish for own in results for c in own] == ["stop"] * 2 + ["failed"] * 6
    failed = [own[0] for own in results[1:]]
    assert all(c.token_ids == [] and c.logprobs is None for c in failed)
    assert "content_filter" in failed[0].error
    assert "tool_calls" in failed[1].error
    assert "status 400" in failed[2].error


def test_a_response_cut_at_the_limit_has_no_end_token() -> None:
    with FaultServer(lambda question, nth: "cut") as server:
        [[only]] = engine(server).generate(asked(["q0"], samples=1), SAMPLING)
    assert only.finish == "length" and only.token_ids == [*map(ord, only.text)]


def test_a_server_that_is_gone_stops_it() -> None:
    with FaultServer(lambda question, nth: "drop") as server, pytest.raises(ServerGoneError):
        engine(server).generate(asked(NAMES), SAMPLING)


def test_sampling_is_sent_and_what_says_nothing_is_left_out() -> None:
    with FaultServer(lambda question, nth: "one") as server:
        asking = engine(server)
        asking.generate(asked(["q0"], samples=1), SAMPLING)
        asking.generate(asked(["q0"], samples=1), Sampling.greedy(5))
        full, greedy = server.bodies
    expected = {
        "temperature": 1.0, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05,
        "max_tokens": 16, "seed": keys("q0")[0].engine_seed,
    }  # fmt: skip
    assert full.items() >= expected.items()
    assert "n" not in full and "logprobs" not in full
    assert (greedy["temperature"], greedy["max_tokens"]) == (0.0, 5)
    assert not {"top_k", "repetition_penalty"} & set(greedy)


def test_log_probs_are_those_of_the_first_tokens_that_are_ours() -> None:
    with FaultServer(lambda question, nth: "many") as server:
        [own] = engine(server, logprobs=True).generate(asked(["q0"]), SAMPLING)
        # All characters; the end token is called otherwise here.
        assert all(c.logprobs == [-0.5] * len(c.text) for c in own)
        assert all(c.token_ids == [*map(ord, c.text)] for c in own)
        asking = engine(server, logprobs=True)
        whole = asking._tokenizer

        class Pairs(Characters):
            def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
                ids = whole(text, **options)["input_ids"]
                return {"input_ids": [*ids[:2], 1000, *ids[4:]]}

        asking._tokenizer = Pairs()
        [own] = asking.generate(asked(["q0"]), SAMPLING)
        assert [c.token_ids for c in own] == [[*map(ord, "q0")]] * 3
        plain = engine(server).generate(asked(["q0"]), SAMPLING)
        assert all(c.logprobs is None and c.token_ids[-1] == END for c in plain[0])


def test_pictures_stand_in_their_places_and_lose_nothing() -> None:
    pictures = [Image.new("RGB", (5, 4), "red"), Image.new("RGB", (40, 40), "blue")]
    question = Question(
        id="q",
        text="and <image>?",
        images=("a", "b"),
        history=(Turn(question="is <image> red", answer="yes"),),
    )
    made = question_messages(
        question, png_files(pictures, max_pixels=100), PromptText(system="be brief", suffix="Say.")
    )
    assert [m["role"] for m in made] == ["system", "user", "assistant", "user"]
    assert (made[0]["content"], made[2]["content"]) == ("be brief", "yes")
    kinds = [[part["type"] for part in made[i]["content"]] for i in (1, 3)]
    assert kinds == [["text", "image_url", "text"], ["text", "image_url", "text"]]
    assert made[3]["content"][-1]["text"] == "?\nSay."
    sent = []
    for place in (1, 3):
        url = made[place]["content"][1]["image_url"]["url"]
        start, _, data = url.partition(",")
        assert start == "data:image/png;base64"
        sent.append(Image.open(io.BytesIO(base64.b64decode(data))))
    assert sent[0].size == (5, 4) and sent[0].tobytes() == pictures[0].tobytes()
    assert sent[1].size == (10, 10), "no more pixels than allowed"


def test_seeds_are_the_keys_own() -> None:
    seeds = {key.engine_seed for name in NAMES for key in keys(name, 8)}
    assert len(seeds) == 8 * len(NAMES) and all(0 <= seed < 2**31 for seed in seeds)
