import threading

import pytest

from ince.errors import InputError
from ince.ops import backends


def test_the_reference_can_be_forced_for_a_while():
    assert not backends.is_reference_only()
    with backends.reference_only():
        assert backends.is_reference_only()
        with backends.reference_only():
            assert backends.is_reference_only()
        assert backends.is_reference_only()
    assert not backends.is_reference_only()


def test_the_reference_is_no_longer_forced_after_an_error():
    with pytest.raises(ZeroDivisionError), backends.reference_only():
        raise ZeroDivisionError
    assert not backends.is_reference_only()


def test_one_thread_does_not_force_another():
    seen = []
    with backends.reference_only():
        thread = threading.Thread(target=lambda: seen.append(backends.is_reference_only()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_the_environment_can_force_the_reference(monkeypatch):
    monkeypatch.setenv("INCE_BACKEND", "reference")
    assert backends.is_reference_only()
    monkeypatch.setenv("INCE_BACKEND", "")
    assert not backends.is_reference_only()
    monkeypatch.setenv("INCE_BACKEND", "fast")
    with pytest.raises(InputError, match="no such backend") as caught:
        backends.is_reference_only()
    assert caught.value.got == "fast"


def test_each_kind_of_device_is_reported_once():
    found = backends.report()
    assert [each.device_type for each in found] == ["cpu", "cuda"]
    for each in found:
        assert each.backend in {"cpu", "triton", "reference"}
        assert each.detail
        # Where it is the reference, it says why.
        assert (each.backend == "reference") == (each.fallback_reason is not None)


def test_a_forced_reference_is_reported():
    with backends.reference_only():
        found = backends.report()
    assert {each.backend for each in found} == {"reference"}
    assert all(each.fallback_reason for each in found)
