"""Policies from users' files: the documented example runs, and every mistake is one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_core import ConfigurationError
from sage_policy import Policy, make_policy
from sage_policy.python_policy import GuardedPolicy, PolicyFailure
from unit.sage_policy.drivers import dispatches, submitted, up

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "loadtests" / "scheduling" / "examples" / "shortest_prompt.py"
HEADER = "from sage_policy import PlacementPolicy\n"


def load(path: Path | str, **options: object) -> Policy:
    return make_policy(str(path), max_queued=10, seed=0, **options)


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_documented_example_takes_the_shortest_prompt_first() -> None:
    policy = load(f"{EXAMPLE}:ShortestPrompt")
    policy.handle(up("a", 8), 0.0)
    policy.handle(submitted("running/0", num_prompt_tokens=8000), 0.0)
    for key, num_tokens in (("long/0", 4000), ("middle/0", 1000), ("short/0", 300)):
        assert dispatches(policy.handle(submitted(key, num_prompt_tokens=num_tokens), 0.0)) == []
    assert [key for key, _ in dispatches(policy.handle(up("b", 8), 1.0))] == ["short/0", "middle/0", "long/0"]


def test_the_documented_example_is_what_the_document_shows() -> None:
    document = (ROOT / "docs" / "how-to" / "write-a-policy.md").read_text()
    assert EXAMPLE.read_text() in document
    assert len(EXAMPLE.read_text().splitlines()) <= 32


def test_receipts_name_the_class(write) -> None:
    text = HEADER + "class Mine(PlacementPolicy):\n    def score(self, request, instance): return 0\n"
    assert load(f"{write(text)}:Mine").name == "Mine"


def test_a_class_with_its_own_handle_is_a_policy_too(write) -> None:
    text = """
class Refusing:
    name = "refusing"

    def __init__(self, seed):
        pass

    def handle(self, event, now):
        return []
"""
    assert load(f"{write(text)}:Refusing").handle(up("a"), 0.0) == []


def test_weights_reach_the_class_as_keywords(write) -> None:
    text = HEADER + (
        "class Mine(PlacementPolicy):\n"
        "    def __init__(self, *, weight=1, **options):\n"
        "        super().__init__(**options)\n"
        "        self.weight = weight\n"
        "    def score(self, request, instance): return self.weight\n"
    )
    path = write(text)
    assert vars(load(f"{path}:Mine", weight=3))["weight"] == 3
    with pytest.raises(ConfigurationError, match=r"Mine cannot be made with .*'speed'"):
        load(f"{path}:Mine", speed=3)


def test_two_files_of_one_name_are_two_modules(tmp_path: Path, write) -> None:
    for folder, value in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        text = HEADER + (
            f"class Mine(PlacementPolicy):\n    value = {value}\n"
            "    def score(self, request, instance): return 0\n"
        )
        path = write(text, f"{folder}/mine.py")
        assert vars(type(load(f"{path}:Mine")))["value"] == value


def refusal(name: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(str(name))
    assert "\n" not in caught.value.message
    assert str(name).partition(":")[0] in caught.value.message
    return caught.value.message


def test_a_missing_file_is_named() -> None:
    assert "/nowhere/mine.py does not exist" in refusal("/nowhere/mine.py:Mine")


def test_a_name_without_a_class_says_the_form() -> None:
    for name in ("mine.py", "mine.py:", "mine.py:not-a-name", "mine.python:Mine"):
        assert "is not of the form path/to/file.py:ClassName" in refusal(name)


def test_a_missing_class_names_those_there_are(write) -> None:
    path = write(HEADER + "class Other(PlacementPolicy):\n    def score(self, request, instance): return 0\n")
    assert f"{path} has no class Mine; its policies are: Other" in refusal(f"{path}:Mine")
    empty = write("mine = 3\n", "empty.py")
    assert "its policies are: none" in refusal(f"{empty}:mine")


def test_a_class_that_is_no_policy_says_what_is_expected(write) -> None:
    path = write("class Mine:\n    pass\n")
    assert "has no method handle(event, now); expected a subclass of PlacementPolicy" in refusal(
        f"{path}:Mine"
    )


def test_a_missing_score_is_named(write) -> None:
    path = write(HEADER + "class Mine(PlacementPolicy):\n    pass\n")
    assert "Mine does not define score(self, request, instance)" in refusal(f"{path}:Mine")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("def score(self, request): return 0", "score(self, request, instance)"),
        ("def score(self, request, instance, now): return 0", "score(self, request, instance)"),
        (
            "def score(self, request, instance): return 0\n    def key(self): return 0",
            "key(self, request)",
        ),
        (
            "def score(self, request, instance): return 0\n    def may_take(self, request): return True",
            "may_take(self, request, instance)",
        ),
        (
            "def score(self, request, instance): return 0\n    def handle(self, event): return []",
            "handle(self, event, now)",
        ),
    ],
)
def test_a_method_with_other_parameters_is_refused(write, method: str, expected: str) -> None:
    path = write(HEADER + f"class Mine(PlacementPolicy):\n    {method}\n")
    assert f"must be {expected}" in refusal(f"{path}:Mine")


def test_a_mistake_in_the_file_names_its_line(write) -> None:
    assert "line 2: " in refusal(f"{write('class Mine:' + chr(10) + '  x = = 3')}:Mine")
    broken = write("import sage_policy\n\nvalue = 1 / 0\n", "broken.py")
    assert f"{broken}, line 3: the file cannot be imported: ZeroDivisionError: division by zero" in refusal(
        f"{broken}:Mine"
    )
    missing = write("import no_such_module\n", "missing.py")
    assert "line 1: the file cannot be imported: ModuleNotFoundError: No module named" in refusal(
        f"{missing}:Mine"
    )


def test_a_constructor_that_fails_is_named(write) -> None:
    path = write(
        HEADER + "class Mine(PlacementPolicy):\n"
        "    def __init__(self, **options):\n        raise ValueError('no\\nweights')\n"
        "    def score(self, request, instance): return 0\n"
    )
    assert "ValueError: no weights" in refusal(f"{path}:Mine")


def test_leaving_the_process_is_a_failure_too(write) -> None:
    path = write("import sys\nsys.exit(3)\n")
    assert f"{path}, line 2: the file cannot be imported: SystemExit: 3" in refusal(f"{path}:Mine")


def test_a_file_named_from_its_folder_has_its_line_too(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("\nvalue = 1 / 0\n").parent)
    assert "mine.py, line 2: the file cannot be imported" in refusal("mine.py:Mine")


@pytest.mark.parametrize("name", ["3", "''", "'two\\nlines'", "'x' * 1000"])
def test_a_name_that_is_no_text_is_refused(write, name: str) -> None:
    text = f"class Mine:\n    name = {name}\n    def handle(self, event, now): return []\n"
    assert "expected text of 1 to 128 printable characters" in refusal(f"{write(text)}:Mine")


def test_a_class_of_another_kind_without_a_name_is_refused(write) -> None:
    path = write("class Mine:\n    def handle(self, event, now): return []\n")
    assert "Mine has no name; expected an attribute" in refusal(f"{path}:Mine")


def test_a_constructor_that_forgets_the_base_is_refused(write) -> None:
    path = write(
        HEADER + "class Mine(PlacementPolicy):\n"
        "    def __init__(self):\n        self.weight = 1\n"
        "    def score(self, request, instance): return 0\n"
    )
    assert "does not call super().__init__(**options)" in refusal(f"{path}:Mine")


def test_an_unknown_name_says_what_there_is() -> None:
    message = refusal("fastest")
    assert "expected one of hybrid, round-robin" in message
    assert "path/to/file.py:ClassName" in message


def test_a_guarded_policy_raises_nothing_but_its_failure(write) -> None:
    path = write(
        "class Mine:\n    name = 'mine'\n    def handle(self, event, now):\n        raise KeyError('no\\nkey')\n"
    )
    policy = GuardedPolicy(load(f"{path}:Mine"))
    assert policy.name == "mine"
    with pytest.raises(PolicyFailure) as caught:
        policy.handle(up("a"), 0.0)
    assert caught.value.message.startswith(f"policy {path}:Mine failed: KeyError: 'no")
    assert caught.value.message.endswith(f"({path}, line 4)")
