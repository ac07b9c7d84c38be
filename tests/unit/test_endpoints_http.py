"""JSON services over real connections: what is repeated, what is said of one request, what ends everything."""

from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import ValidationError

from octopus_mcore.config.endpoint import EndpointConfig
from octopus_mcore.endpoints.http import EndpointError, JsonReply, JsonService
from tests.json_server import Answer, serving


def asked(server, bodies, waits=None, path="", **settings) -> list[JsonReply]:
    waits = [] if waits is None else waits
    with JsonService(EndpointConfig(url=server.url, **settings), waits.append) as service:
        return list(service.ask(bodies, path))


def test_replies_come_in_order_though_the_first_is_the_slowest():
    def slow_first(body, number):
        time.sleep(0.3 if body["i"] == 0 else 0.0)
        return {"i": body["i"]}

    with serving(slow_first) as server:
        replies = asked(server, [{"i": i} for i in range(12)], concurrency=4)
    assert [reply.body["i"] for reply in replies] == list(range(12))
    assert 1 < server.most_at_once <= 4


def test_the_path_extends_the_address_and_umlauts_arrive():
    with serving(lambda body, number: body) as server:
        assert asked(server, [{"text": "½ Ä \ud800"}], path="/judge")[0].body == {"text": "½ Ä \ud800"}
    assert server.paths == ["/judge"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_a_busy_service_is_asked_again(status):
    waits: list[float] = []
    with serving(lambda body, number: Answer({"ok": True}, status if number < 2 else 200)) as server:
        assert asked(server, [{}], waits) == [JsonReply({"ok": True})]
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("wish", "expected"), [("7", 7.0), ("0", 0.0), ("-3", 0.0), ("9999", 60.0), ("soon", 1.0), ("nan", 1.0), ("inf", 1.0)]
)
def test_it_waits_as_the_service_asks(wish, expected):
    waits: list[float] = []
    with serving(lambda body, number: Answer({}, 429, {"Retry-After": wish}) if number == 0 else {}) as server:
        assert asked(server, [{}], waits)[0].error is None
    assert waits == [expected]


def test_a_date_to_wait_for_is_understood():
    waits: list[float] = []
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    with serving(lambda body, number: Answer({}, 503, {"Retry-After": date}) if number == 0 else {}) as server:
        asked(server, [{}], waits)
    assert 20 < waits[0] <= 40


def test_what_stays_unanswered_is_said_of_its_request_only():
    waits: list[float] = []
    with serving(lambda body, number: Answer({"why": "full"}, 503 if body["i"] == 1 else 200)) as server:
        replies = asked(server, [{"i": 0}, {"i": 1}, {"i": 2}], waits, retries=3)
    assert [reply.error is None for reply in replies] == [True, False, True]
    assert replies[1].body is None and "no answer in 4 attempts" in replies[1].error and "full" in replies[1].error
    assert waits == [1.0, 2.0, 4.0]


def test_a_refused_request_is_not_repeated_and_the_others_are_answered():
    with serving(lambda body, number: Answer({"error": "too long"}, 400 if body["i"] == 1 else 200)) as server:
        replies = asked(server, [{"i": 0}, {"i": 1}, {"i": 2}])
    assert "refused with status 400" in replies[1].error and "too long" in replies[1].error
    assert replies[0].error is None and replies[2].error is None and len(server.bodies) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_wrong_key_or_address_ends_everything_at_once(status):
    with serving(lambda body, number: Answer({"error": "no such model"}, status)) as server:
        with pytest.raises(EndpointError, match=rf"{server.url} answers {status}.*no such model"):
            asked(server, [{}] * 40, concurrency=1)
    assert len(server.bodies) < 10


def test_a_moved_service_names_its_new_address():
    with serving(lambda body, number: Answer({}, 301, {"Location": "https://elsewhere/v1"})) as server:
        with pytest.raises(EndpointError, match="moved to https://elsewhere/v1"):
            asked(server, [{}])


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening
        url, waits = f"http://127.0.0.1:{taken.getsockname()[1]}", []
        with JsonService(EndpointConfig(url=url, retries=2), waits.append) as service:
            with pytest.raises(EndpointError, match=f"{url}: nobody answers there"):
                list(service.ask([{}, {}]))
    assert waits[:2] == [1.0, 1.0] or sorted(set(waits)) == [1.0, 2.0]


@pytest.mark.parametrize("content", [b"<html>", b"", b"{'a': 1}", b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_json(content):
    with serving(lambda body, number: Answer(content=content)) as server:
        (reply,) = asked(server, [{}])
    assert reply.body is None and "no JSON" in reply.error and len(reply.error) < 2000


def test_hanging_up_is_repeated():
    with serving(lambda body, number: Answer(hang_up=number == 0, body={"ok": 1})) as server:
        assert asked(server, [{}]) == [JsonReply({"ok": 1})]


def test_no_answer_in_time():
    released = threading.Event()
    with serving(lambda body, number: released.wait(20) and {}) as server:
        (reply,) = asked(server, [{}], timeout_seconds=0.2, retries=1)
        released.set()
    assert "no answer in 2 attempts" in reply.error and "Timeout" in reply.error


def test_an_answer_in_drops_does_not_outlive_the_deadline():
    """Each byte comes long before a time limit between bytes would pass."""
    with serving(lambda body, number: Answer(content=b"1" * 2000, drip_seconds=0.02)) as server:
        (reply,) = asked(server, [{}], timeout_seconds=0.3, retries=0)
    assert "not complete within 0.3 s" in reply.error


def test_bodies_are_taken_as_their_turn_comes():
    made = []

    def bodies():
        for i in range(50):
            made.append(i)
            yield {"i": i}

    with serving(lambda body, number: body) as server:
        with JsonService(EndpointConfig(url=server.url, concurrency=2)) as service:
            replies = service.ask(bodies())
            next(replies)
            assert len(made) <= 8
            assert [reply.body["i"] for reply in replies] == list(range(1, 50))


def test_closing_does_not_wait_for_repetitions():
    began = time.monotonic()
    with serving(lambda body, number: Answer({}, 429, {"Retry-After": "60"})) as server:
        with JsonService(EndpointConfig(url=server.url)) as service:
            future = service._threads.submit(service._post, server.url, {})
            while not server.bodies:
                time.sleep(0.01)
        assert "closed" in future.result().error
    assert time.monotonic() - began < 50


def test_the_key_comes_from_the_environment(monkeypatch):
    config = EndpointConfig(url="http://127.0.0.1:9", api_key_variable="JUDGE_KEY")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(EndpointError, match="JUDGE_KEY"):
        JsonService(config)
    monkeypatch.setenv("JUDGE_KEY", "secret\n")
    with serving(lambda body, number: {}) as server:
        asked(server, [{}], api_key_variable="JUDGE_KEY")
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_body_that_json_cannot_say_is_the_callers_error():
    with serving(lambda body, number: {}) as server:
        with pytest.raises(ValueError):
            asked(server, [{"score": float("nan")}])


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host/x", "http://", "localhost", ""])
def test_an_address_without_scheme_and_host_is_refused(url):
    with pytest.raises(ValidationError, match="url"):
        EndpointConfig(url=url)
