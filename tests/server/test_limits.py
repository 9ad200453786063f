"""Requests and tokens a minute: pure buckets under a clock of the test's own, and what clients of a server see."""

from collections.abc import Callable

import httpx
import openai
import pytest

from server.errors import ApiError
from server.identity import Identity
from server.limits import Allowance, Bucket, Limits
from server.settings import Settings
from tests.server.conftest import ForkedServer, ask

Make = Callable[..., ForkedServer]
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def someone(user: str = "alice", key: str | None = "key-1") -> Identity:
    return Identity(user, frozenset({"chat"}), "test", key_id=key)


def limits(clock: Clock, **settings: int) -> Limits:
    return Limits(Settings(**settings), clock)


def refused(allowance: Allowance) -> ApiError:
    with pytest.raises(ApiError) as caught:
        allowance.enter()
    assert caught.value.status == 429
    return caught.value


def test_a_bucket_refills_in_a_minute_and_holds_no_more() -> None:
    bucket = Bucket(60, at=0.0)
    bucket.take(60, at=0.0)
    assert bucket.level(at=0.0) == 0
    assert bucket.seconds_until(60, at=0.0) == 60
    assert bucket.level(at=15.0) == 15
    assert bucket.level(at=1000.0) == 60


def test_requests_are_refused_until_there_is_room_for_one() -> None:
    clock = Clock()
    guard = limits(clock, requests_per_minute_per_user=2)
    for _ in range(2):
        guard.allowance(someone()).enter()
    error = refused(guard.allowance(someone()))
    assert error.headers["retry-after"] == "30"
    assert "2 requests a minute for one user" in error.message
    guard.allowance(someone("bob")).enter()
    clock.at += 30
    guard.allowance(someone()).enter()
    refused(guard.allowance(someone()))


def test_tokens_are_counted_as_they_come_and_may_be_owed() -> None:
    clock = Clock()
    guard = limits(clock, tokens_per_minute_per_key=60)
    first = guard.allowance(someone())
    first.enter()
    for _ in range(10):
        first.spend(10)  # a stream is not cut short
    assert first.headers() == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "100.000s",
    }
    assert refused(guard.allowance(someone("bob"))).headers["retry-after"] == "41"
    clock.at += 41
    guard.allowance(someone("bob")).enter()


def test_what_is_refused_takes_nothing() -> None:
    clock = Clock()
    guard = limits(clock, requests_per_minute_per_key=3, requests_per_minute_per_user=1)
    guard.allowance(someone("alice")).enter()
    for _ in range(5):
        refused(guard.allowance(someone("alice")))
    guard.allowance(someone("bob")).enter()
    told = guard.allowance(someone("carol")).headers()
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("3", "1")
    guard.allowance(someone("carol")).enter()
    assert "for one key" in refused(guard.allowance(someone("dave"))).message


def test_a_browser_has_no_key_to_be_limited_by() -> None:
    guard = limits(Clock(), requests_per_minute_per_key=1)
    for _ in range(3):
        guard.allowance(someone(key=None)).enter()


def test_users_who_went_away_are_forgotten() -> None:
    clock = Clock()
    guard = limits(clock, requests_per_minute_per_user=60)
    for number in range(10_001):
        guard.allowance(someone(f"user{number}")).enter()
    clock.at += 60
    guard.allowance(someone("alice")).enter()
    assert len(guard._buckets) == 1


def test_clients_are_told_what_they_have_left(forked: Make) -> None:
    running = forked(KUDOS_REQUESTS_PER_MINUTE_PER_USER="1", KUDOS_TOKENS_PER_MINUTE_PER_KEY="1000").start()
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.operator_key, max_retries=0) as client:
        create = client.chat.completions.with_raw_response.create
        told = create(model="kudos", messages=HELLO["messages"])
        usage = told.parse().usage
        assert told.headers["x-ratelimit-limit-requests"] == "1"
        assert told.headers["x-ratelimit-remaining-requests"] == "0"
        assert told.headers["x-ratelimit-reset-requests"].endswith("s")
        assert told.headers["x-ratelimit-limit-tokens"] == "1000"
        assert int(told.headers["x-ratelimit-remaining-tokens"]) >= 1000 - usage.total_tokens
        with pytest.raises(openai.RateLimitError) as caught:
            create(model="kudos", messages=HELLO["messages"])
    refusal = caught.value.response
    assert refusal.json()["error"]["type"] == "rate_limit_error"
    assert refusal.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refusal.headers["retry-after"]) <= 60
    assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
    assert running.metric("kudos_chat_rate_limited_total", unit="requests", whose="user") == 1
    with running.client("bob") as bob:
        streamed = bob.post("/v1/chat/completions", json=HELLO | {"stream": True})
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        assert bob.post("/v1/comparisons", json=HELLO).status_code == 429
        assert "x-ratelimit-limit-requests" not in bob.get("/v1/models").headers


def test_tokens_that_were_used_are_counted_for_the_whole_key(forked: Make) -> None:
    running = forked(KUDOS_TOKENS_PER_MINUTE_PER_KEY="20").start()

    def talk(user: str) -> httpx.Response:
        with running.client(user) as client:
            return client.post("/v1/chat/completions", json=HELLO)

    answers = [talk(f"user{number}") for number in range(5)]  # of at least 12 tokens each
    assert answers[0].status_code == 200
    assert "20 tokens a minute for one key" in answers[-1].json()["error"]["message"]
    assert running.metric("kudos_chat_rate_limited_total", unit="tokens", whose="key") >= 1


def test_without_limits_nothing_is_told(forked: Make) -> None:
    running = forked().start()
    with running.client() as client:
        assert ask(client)
        headers = client.post("/v1/chat/completions", json=HELLO).headers
    assert not [name for name in headers if name.startswith("x-ratelimit")]
