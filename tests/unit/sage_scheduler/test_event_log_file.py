"""Promises of the event log's file: bounded, whole records only, the log before it kept, a bad disk no disaster."""

from __future__ import annotations

from pathlib import Path

from sage_policy import Finished, SetTimer, Timer
from sage_policy.event_log import LogHeader, encode_header, encode_record, read_log
from sage_scheduler.event_log_file import BUFFER_BYTES, EventLogFile

HEADER = LogHeader(policy="hybrid", max_queued=8, seed=1)
RECORD = len(encode_record(Timer(), 1.0, [SetTimer(2.0)]))


def opened(path: Path, max_bytes: int = 2**20) -> EventLogFile:
    return EventLogFile(path, HEADER, max_bytes=max_bytes)


async def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    log = opened(tmp_path / "events" / "s1.log")
    log.record(Timer(), 1.0, [SetTimer(2.0)])
    log.record(Finished("r/0", 3), 1.5, [])
    log.close()
    log.close()
    read = read_log(log.path.read_bytes())
    assert read.header == HEADER
    assert [(record.event, record.now) for record in read.records] == [
        (Timer(), 1.0),
        (Finished("r/0", 3), 1.5),
    ]


async def test_a_log_whose_scheduler_is_killed_at_once_is_a_log(tmp_path: Path) -> None:
    log = opened(tmp_path / "s1.log")
    assert read_log(log.path.read_bytes()).header == HEADER
    log.close()


async def test_a_full_log_ends_with_a_whole_record_and_within_its_limit(tmp_path: Path) -> None:
    limit = len(encode_header(HEADER)) + 10 * RECORD + RECORD // 2
    log = opened(tmp_path / "s1.log", limit)
    for _ in range(50):
        log.record(Timer(), 1.0, [SetTimer(2.0)])
    log.close()
    assert log.path.stat().st_size <= limit
    read = read_log(log.path.read_bytes())
    assert (len(read.records), read.is_cut) == (10, False)


async def test_what_exceeds_the_buffer_is_on_disk_before_the_end(tmp_path: Path) -> None:
    log = opened(tmp_path / "s1.log")
    for _ in range(BUFFER_BYTES // RECORD + 2):
        log.record(Timer(), 1.0, [SetTimer(2.0)])
    assert log.path.stat().st_size >= BUFFER_BYTES
    log.close()


async def test_the_log_of_the_life_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s1.log"
    for seconds in (1.0, 2.0, 3.0):
        log = opened(path)
        log.record(Timer(), seconds, [])
        log.close()
    kept = [path, path.with_name("s1.log.1")]
    assert [read_log(file.read_bytes()).records[0].now for file in kept] == [3.0, 2.0]


async def test_a_folder_that_cannot_be_written_ends_the_log_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = opened(tmp_path / "file" / "s1.log")
    log.record(Timer(), 1.0, [])
    log.close()
