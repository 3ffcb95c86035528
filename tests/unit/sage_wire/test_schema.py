"""proto/ follows the code: what is stale is named, what was released is never rewritten."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sage_wire import schema, subjects
from sage_wire.channels import CHANNELS
from sage_wire.samples import SAMPLES

PROTO = Path(__file__).parents[3] / "proto"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert schema.main(["--output", str(tmp_path)]) == 0
    return tmp_path


def check(folder: Path) -> int:
    return schema.main(["--check", "--output", str(folder)])


def test_the_committed_folder_is_up_to_date() -> None:
    assert check(PROTO) == 0


def test_generating_twice_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert schema.main(["--output", str(folder)]) == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_a_stale_a_missing_and_a_left_over_file_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "schemas" / "Submit.json").write_text("{}")
    (folder / "asyncapi.json").unlink()
    (folder / "golden" / "Ping.msgpack").unlink()
    (folder / "schemas" / "Gone.json").write_text("{}")
    assert check(folder) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^.*/(\S+): (\w+).*", r"\1 \2", line) for line in lines] == [
        "asyncapi.json missing",
        "Ping.msgpack missing",
        "Submit.json stale",
        "Gone.json no",
    ]


def test_released_bytes_are_never_rewritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = folder / "golden" / "Submit.msgpack"
    golden.write_bytes(b"\x80")
    assert schema.main(["--output", str(folder)]) == 1
    assert golden.read_bytes() == b"\x80"
    assert "Submit is written differently now" in capsys.readouterr().err


def test_a_sample_that_vanished_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "golden" / "Old.msgpack").write_bytes(b"\x80")
    assert check(folder) == 1
    assert "released bytes must stay readable" in capsys.readouterr().err


def test_every_reference_of_the_asyncapi_document_resolves() -> None:
    document = json.loads((PROTO / "asyncapi.json").read_text())

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                visit(item)
        elif isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/"):
                target = document
                for part in reference[2:].split("/"):
                    target = target[part]
            elif isinstance(reference, str):
                assert (PROTO / reference).is_file(), reference
            for item in node.values():
                visit(item)

    visit(document)
    assert document["asyncapi"] == "3.0.0"


def test_every_subject_is_in_the_document() -> None:
    addresses = {channel.address for channel in CHANNELS}
    token = subjects.pool_token("m")
    made = {
        subjects.pool_submit("m").replace(token, "{pool}"),
        subjects.pool_cancel("m").replace(token, "{pool}"),
        subjects.pool_report("m").replace(token, "{pool}"),
        subjects.worker_dispatch("{worker}"),
        subjects.worker_cancel("{worker}"),
        subjects.frames("{consumer}", "{role}"),
        subjects.announce("{kind}", "{actor}"),
        subjects.RECEIPTS_FIND,
        subjects.JOBS_SUBMIT,
    }
    assert made <= addresses


def test_every_message_has_a_schema_and_every_schema_stands_alone() -> None:
    schemas = schema.schemas()
    for name, document in schemas.items():
        for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
            assert reference.removeprefix("#/$defs/") in document["$defs"], (name, reference)
    assert set(schemas) == {name.partition(".")[0] for name in SAMPLES}
