"""Allowances: they fill with time, answers may overdraw them, and nobody's are another's."""

import pytest

from ince.serve.http.errors import ApiError
from ince.serve.http.limits import Limits
from ince.serve.http.tenants import Caller


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def wait_of(call):
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.status == 429
    return int(caught.value.headers["Retry-After"])


def test_requests_come_back_one_by_one(clock):
    limits, caller = Limits(clock), Caller("a", requests_per_minute=6)
    for _ in range(6):
        limits.open(caller).close()
    assert wait_of(lambda: limits.open(caller)) == 10
    clock.now += 9.9
    assert wait_of(lambda: limits.open(caller)) == 1
    clock.now += 0.1
    limits.open(caller).close()
    clock.now += 3600
    for _ in range(6):  # an hour saves up no more than a minute
        limits.open(caller).close()
    wait_of(lambda: limits.open(caller))


def test_an_answer_may_overdraw_and_is_paid_back(clock):
    limits, caller = Limits(clock), Caller("a", tokens_per_minute=60)
    permit = limits.open(caller)
    permit.begin(None)
    permit.pay(50)
    permit.finished(50, 40)
    permit.close()
    assert wait_of(lambda: limits.open(caller).pay(1)) == 31
    clock.now += 31
    limits.open(caller).pay(1)


def test_a_prompt_that_never_fits_is_not_tried_again(clock):
    with pytest.raises(ApiError) as caught:
        Limits(clock).open(Caller("a", tokens_per_minute=10)).pay(11)
    assert caught.value.headers["x-should-retry"] == "false"


def test_a_permit_is_given_back_once(clock):
    limits, caller = Limits(clock), Caller("a", max_concurrent=1)
    first = limits.open(caller)
    wait_of(lambda: limits.open(caller))
    limits.open(Caller("b", max_concurrent=1))
    first.close()
    first.close()
    limits.open(caller)
    wait_of(lambda: limits.open(caller))


def test_usage_is_taken_once_and_put_back_whole():
    limits = Limits()
    permit = limits.open(Caller("a"))
    permit.begin("d" * 64)
    permit.finished(3, 4)
    taken = limits.take_usage()
    assert limits.take_usage() == []
    permit.finished(1, 1)
    limits.put_back(taken)
    (usage,) = limits.take_usage()
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (1, 4, 5)
