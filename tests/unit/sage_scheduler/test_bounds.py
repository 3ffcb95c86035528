"""A submit that no policy can represent is refused, and costs nobody else an answer."""

from __future__ import annotations

import msgspec
import pytest

from desk_driver import announce, desk, submit
from sage_core import BadRequest
from sage_scheduler.outgoing import SendDispatch
from sage_wire.messages import WorkSize


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"size": WorkSize(max_tokens=-1)}, "max_tokens"),
        ({"size": WorkSize(max_tokens=2**40)}, "max_tokens"),
        ({"size": WorkSize(max_tokens=2**62)}, "max_tokens"),
        ({"size": WorkSize(num_items=-5)}, "num_items"),
        ({"size": WorkSize(num_prompt_tokens=-1)}, "num_prompt_tokens"),
        ({"size": WorkSize(num_chars=2**33)}, "num_chars"),
        ({"size": WorkSize(blocks=[-1])}, "blocks"),
        ({"priority": 2**40}, "priority"),
    ],
)
def test_a_size_that_cannot_be_is_refused_alone(change: dict[str, object], param: str) -> None:
    made = desk()
    made.worker_heard(announce(limit=4), 0.0)
    with pytest.raises(BadRequest) as raised:
        made.submit(msgspec.structs.replace(submit("bad"), **change), 10.0, 0.0)
    assert raised.value.param == param
    outgoing = made.submit(submit("good"), 10.0, 0.0)
    assert [item for item in outgoing if isinstance(item, SendDispatch)]
