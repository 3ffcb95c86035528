"""docs/how-to/publish-jobs.md tells other languages what is on the wire: it agrees with proto/, the bytes included."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from sage_core import SageError
from sage_wire import decode, subjects
from sage_wire.messages import JOB_STATE_SECONDS, ChatMessage, JobStatus, RunPipeline, SubmitJob

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "publish-jobs.md").read_text()
RUN = RunPipeline(pipeline="rag-docs", messages=[ChatMessage(role="user", content="What is a frame?")])


def rows_under(title: str) -> dict[str, str]:
    """Return field to default, as the first table under a heading has them."""
    section = PAGE.split(f"\n### {title}\n")[1].split("\n#")[0].strip().split("\n\n")[0]
    rows = [re.match(r"\| `(\w+)` \| ([^|]+) \|", line) for line in section.splitlines()[2:]]
    assert all(rows), section
    return {row[1]: row[2].strip("` ") for row in rows if row}


@pytest.mark.parametrize("name", re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))
def test_every_field_is_told_with_its_default(name: str) -> None:
    schema: dict[str, Any] = json.loads((ROOT / "proto" / "schemas" / f"{name}.json").read_text())
    expected = {
        field: "required" if field in schema["required"] else json.dumps(described.get("default"))
        for field, described in schema["properties"].items()
    }
    if name == "JobState":
        expected["value"] = "none"  # JSON Schema cannot say that it is absent
    assert rows_under(name) == expected


def test_the_bytes_are_the_job_beside_them() -> None:
    shown = re.search(r"```hex\n(.*?)```", PAGE, re.DOTALL)
    beside = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert shown
    assert beside
    job = bytes.fromhex(shown[1])
    assert decode(SubmitJob, job) == SubmitJob(job_id="job-1", run=RUN)
    assert msgpack.unpackb(job) == json.loads(beside[1])


def test_every_subject_header_status_and_code_is_the_real_one() -> None:
    document = json.loads((ROOT / "proto" / "asyncapi.json").read_text())
    for name in ("submitJob", "deadJob"):
        assert f"`{document['channels'][name]['address']}`" in PAGE
    assert f"`{document['channels']['jobState']['address'].replace('{job}', '<job id>')}`" in PAGE
    stream = f"KV_{subjects.JOBS_BUCKET}"
    assert f"`$JS.API.DIRECT.GET.{stream}.$KV.{subjects.JOBS_BUCKET}.<job id>`" in PAGE
    assert f"`{subjects.JOBS_STREAM}_DEAD`" in PAGE
    assert {status.value for status in JobStatus} <= set(re.findall(r"`(\w+)`", PAGE))
    assert JOB_STATE_SECONDS == 7 * 86400
    codes = {kind.code for kind in [SageError, *_below(SageError)]}
    (table,) = re.findall(r"\| codes \| mean \|\n(.*?)\n\n", PAGE, re.DOTALL)
    assert {code for row in table.splitlines() for code in re.findall(r"`(\w+)`", row.split("|")[1])} == codes


def _below(kind: type[SageError]) -> list[type[SageError]]:
    return [found for child in kind.__subclasses__() for found in (child, *_below(child))]
