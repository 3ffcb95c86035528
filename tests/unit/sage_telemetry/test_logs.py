"""Logs: one JSON line per event, with the ids of process and trace, and nothing that a caller wrote."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from sage_telemetry import get_logger, use_parent

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_an_event_is_one_json_line_with_service_actor_and_trace(configured: Any, capsys: Any) -> None:
    log = get_logger()
    configured()
    with use_parent(SAMPLED):
        log.info("request_dispatched", worker="w-1", queue_ms=1.5)
    (line,) = lines(capsys)
    assert line["event"] == "request_dispatched"
    assert line["level"] == "info"
    assert (line["worker"], line["queue_ms"]) == ("w-1", 1.5)
    assert (line["service"], line["actor"]) == ("sage-test", "test-1")
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["timestamp"].endswith("Z")


def test_lower_levels_are_not_written(configured: Any, capsys: Any) -> None:
    configured(log_level="warning")
    get_logger().info("quiet")
    get_logger().warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_prompts_never_reach_a_log(configured: Any, capsys: Any, log_format: str) -> None:
    configured(log_format=log_format)
    secret = "my grandmother's recipe"
    get_logger().info("request_seen", prompt=secret, messages=[secret], text=secret.encode(), num_tokens=4)
    prompt = secret

    def fails(argument: str) -> None:
        raise ValueError("short")

    try:
        fails(prompt)
    except ValueError as error:
        get_logger().error("handler_crashed", exc_info=error)
    text = capsys.readouterr().err
    assert "grandmother" not in text
    assert "withheld: 23 characters" in text
    assert "withheld: 1 items" in text
    assert "ValueError: short" in text


def test_values_json_does_not_know_are_written_as_text(configured: Any, capsys: Any) -> None:
    configured()
    get_logger().info("odd", what=object, where={1, 2})
    (line,) = lines(capsys)
    assert "object" in line["what"]


def test_warnings_of_libraries_take_the_same_form(configured: Any, capsys: Any) -> None:
    configured()
    configured()
    logging.getLogger("some.library").warning("queue at %d", 7)
    logging.getLogger("some.library").info("chatter")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["actor"]) == ("queue at 7", "warning", "test-1")


def test_an_embedded_client_writes_only_warnings_to_stderr() -> None:
    code = "import sage_telemetry as t; log = t.get_logger(); log.info('chatter'); log.warning('trouble')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == ""
    assert "trouble" in done.stderr
    assert "chatter" not in done.stderr
