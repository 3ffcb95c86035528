"""A fleet of emulated engines on one machine: real processes, real time, lengths that only the engines know."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from integration_instances import Instance

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FLEET = """
[profiles.quick]
a0 = 0.010
m0 = 0.010
[profiles.slow]
a0 = 0.020
m0 = 0.020
[[group]]
name = "quick"
pool = "chat"
profile = "quick"
max_in_flight = 64
[[group]]
name = "slow"
pool = "chat"
profile = "slow"
count = 2
max_in_flight = 4
"""
WITHOUT = ("--without", "embedding-worker", "--without", "operator-worker", "--without", "planner")


async def answer(client: httpx.AsyncClient, number: int) -> tuple[int, float]:
    """Return the tokens of an answer of `number` tokens, and the seconds it took."""
    content = f"Question {number}?\nsage-output-tokens: {number}"
    started = time.monotonic()
    found = await client.post(
        "/v1/chat/completions",
        json={"model": "chat", "messages": [{"role": "user", "content": content}], "max_tokens": 500},
    )
    assert found.status_code == 200, found.text
    assert found.json()["choices"][0]["finish_reason"] == "stop"
    return found.json()["usage"]["completion_tokens"], time.monotonic() - started


async def answers(url: str, numbers: list[int]) -> list[tuple[int, float]]:
    async with httpx.AsyncClient(
        base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:
        return await asyncio.gather(*(answer(client, number) for number in numbers))


def test_a_fleet_runs_on_one_machine_in_the_time_of_its_profiles(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    with Instance(
        "fleet", tmp_path, "--fleet", str(tmp_path / "fleet.toml"), "--port", "0", *WITHOUT
    ) as instance:
        workers = [actor for actor in instance.status["actors"] if actor["kind"] == "llm-worker"]
        assert sorted((actor["id"], actor["max_in_flight"]) for actor in workers) == [
            ("llm-worker-quick-0", 64),
            ("llm-worker-slow-1", 4),
            ("llm-worker-slow-2", 4),
        ]
        numbers = [20 + number for number in range(12)]
        found = asyncio.run(answers(instance.url, numbers))
    assert [tokens for tokens, _ in found] == numbers
    for number, (_, seconds) in zip(numbers, found, strict=True):
        assert 0.010 * number <= seconds < 0.020 * number + 2
