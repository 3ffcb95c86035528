"""The error tree: codes are unique, survive the wire, and say whether another attempt can help."""

from __future__ import annotations

import pytest

import sage_core
from sage_core import Internal, Overloaded, SageError, Unavailable, WorkerLost, error_from_code

CLASSES = [
    value for value in vars(sage_core).values() if isinstance(value, type) and issubclass(value, SageError)
]


def test_every_class_but_the_base_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in CLASSES if kind is not SageError]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if kind is not SageError], ids=lambda kind: kind.code
)
def test_an_error_is_rebuilt_from_its_code_with_its_values(kind: type[SageError]) -> None:
    rebuilt = error_from_code(kind.code, "what happened", param="field", retry_after=1.5)
    assert type(rebuilt) is kind
    assert (rebuilt.message, rebuilt.param, rebuilt.retry_after) == ("what happened", "field", 1.5)
    assert str(rebuilt) == "what happened"


def test_the_code_of_a_newer_peer_becomes_internal() -> None:
    assert type(error_from_code("quota_of_2031", "no")) is Internal


def test_only_the_tree_of_unavailable_and_overloaded_is_retryable() -> None:
    retryable = {kind for kind in CLASSES if kind.retryable}
    assert retryable == {kind for kind in CLASSES if issubclass(kind, Unavailable | Overloaded)}
    assert WorkerLost in retryable
