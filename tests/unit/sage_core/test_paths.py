"""Folders: XDG variables are respected, instances never meet, nothing outside the alphabet becomes a path."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sage_core import ConfigurationError, Paths, new_id


def test_xdg_variables_win_over_the_home_folder() -> None:
    paths = Paths.for_instance(
        "blue", {"HOME": "/home/u", "XDG_DATA_HOME": "/data", "XDG_RUNTIME_DIR": "/run/u"}
    )
    assert paths.data == Path("/data/sage/blue")
    assert paths.runtime == Path("/run/u/sage/blue")
    assert paths.state == Path("/home/u/.local/state/sage/blue")
    assert paths.logs == paths.state / "logs"
    assert paths.config == Path("/home/u/.config/sage")
    assert paths.cache == Path("/home/u/.cache/sage")


def test_a_relative_xdg_path_is_ignored_as_the_specification_says() -> None:
    assert Paths.for_instance(environ={"HOME": "/h", "XDG_STATE_HOME": "state"}).state == Path(
        "/h/.local/state/sage/default"
    )


def test_two_instances_share_only_configuration_and_cache() -> None:
    one, two = (Paths.for_instance(name, {"HOME": "/h"}) for name in ("one", "two"))
    assert (one.config, one.cache) == (two.config, two.cache)
    assert len({one.data, two.data, one.state, two.state, one.runtime, two.runtime}) == 6


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "a" * 33, "a\n", "ä"])
def test_an_instance_name_outside_the_alphabet_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="instance name is"):
        Paths.for_instance(name, {"HOME": "/h"})


def test_folders_are_created_for_their_user_alone(tmp_path: Path) -> None:
    home = str(tmp_path)
    paths = Paths.for_instance("x", {"HOME": home, "XDG_RUNTIME_DIR": f"{home}/run"})
    paths.create()
    paths.create()
    for folder in (paths.data, paths.state, paths.logs, paths.runtime):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_ids_are_safe_everywhere_and_differ() -> None:
    made = {new_id("req") for _ in range(1000)}
    assert len(made) == 1000
    assert all(one.startswith("req-") and one[4:].isalnum() and one.islower() for one in made)
    assert len(new_id(length=8)) == 8
