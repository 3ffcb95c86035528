"""Promises of `[scheduler]`: classes keep what is not said, policies are checked at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_core import ConfigurationError, load_settings
from sage_policy import DEFAULT_CLASSES, SloClass
from sage_scheduler import SchedulerSettings


def load(tmp_path: Path, text: str) -> SchedulerSettings:
    file = tmp_path / "sage.toml"
    file.write_text(text)
    return load_settings(SchedulerSettings, file, {})


def test_a_class_keeps_what_its_table_leaves_out(tmp_path: Path) -> None:
    text = '[scheduler.classes.interactive]\nttft = "800ms"\n[scheduler.classes.batch]\ne2e = "1h"\n'
    classes = load(tmp_path, text).scheduler.slo_classes()
    assert classes["interactive"] == SloClass(tier=0, ttft=0.8)
    assert classes["batch"] == SloClass(tier=2, may_shed=False, e2e=3600.0)
    assert classes["normal"] == DEFAULT_CLASSES["normal"]


def test_a_class_of_a_new_name_begins_without_promises(tmp_path: Path) -> None:
    classes = load(tmp_path, "[scheduler.classes.gold]\ntpot = 0.02\n").scheduler.slo_classes()
    assert classes["gold"] == SloClass(tpot=0.02)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('policy = "fastest"', "scheduling policy 'fastest' is unknown; expected one of hybrid"),
        ('policy = "hybrid+fast"', "expected one of hold"),
        ('[scheduler.classes.""]\ntier = 1', "the name of a class is empty"),
        ("lease_ttl = 0.5", "greater than or equal to 1"),
        ("[scheduler.classes.gold]\ntier = 3", "less than or equal to 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load(tmp_path, f"[scheduler]\n{text}\n")
