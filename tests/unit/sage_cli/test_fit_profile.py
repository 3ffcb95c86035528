"""`sage fit-profile`: a profile on stdout, or one line that says what is wrong."""

import tomllib

import pytest

from sage_cli.app import run

STEPS = "prefill,prompts,context,decoding,decode_context,seconds\n" + "".join(
    f"{prefill},{int(prefill > 0)},0,{decoding},500,{0.01 + 1e-4 * prefill + 2e-4 * decoding}\n"
    for prefill in (0, 16, 64, 256, 512)
    for decoding in (1, 4, 16, 64)
)
BATCHES = "executor,tokens,items,seconds\n" + "".join(
    f"{name},{tokens},{tokens // 8},{0.002 + cost * tokens}\n"
    for name, cost in (("embed", 1e-5), ("rerank", 3e-5))
    for tokens in (8, 64, 512)
)


@pytest.fixture
def steps(tmp_path):
    file = tmp_path / "steps.csv"
    file.write_text(STEPS)
    return file


@pytest.fixture
def batches(tmp_path):
    file = tmp_path / "batches.csv"
    file.write_text(BATCHES)
    return file


def test_measured_steps_become_a_profile(steps, capsys):
    assert run(["fit-profile", str(steps), "--name", "my-gpu", "--kv-tokens", "4096"]) == 0
    found = capsys.readouterr()
    profile = tomllib.loads(found.out)["profiles"]["my-gpu"]
    assert profile["a0"] == pytest.approx(0.01, rel=1e-3)
    assert profile["m1"] == pytest.approx(1e-4, rel=0.05)
    assert profile["kv_tokens"] == 4096
    assert "decode-only steps: 4 fitted" in found.err


def test_measured_batches_of_one_executor_become_a_profile(batches, capsys):
    assert run(["fit-profile", str(batches), "--executor", "rerank"]) == 0
    profile = tomllib.loads(capsys.readouterr().out)["profiles"]["measured"]
    assert profile["m0"] == pytest.approx(0.002, rel=1e-3)
    assert profile["m1"] + profile.get("m4", 0.0) / 8 == pytest.approx(3e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["BATCHES"], "has no executor ''; expected one of 'embed', 'rerank'"),
        (["BATCHES", "--executor", "embed", "--run", "FOLDER"], "--run is for engines that generate"),
        (["FOLDER"], "give the model's number of decoder layers with --layers"),
        (["FOLDER", "--layers", "32"], "expected one dense.csv (or .gz); found none"),
        (["FOLDER/nowhere.csv"], "nowhere.csv: cannot be read"),
        (["OTHER"], "other.csv, line 1: expected the columns prefill,prompts,context"),
        (["BROKEN"], "broken.csv, line 2: seconds is '0'; expected a number from 1e-09"),
        (["ONE KIND"], "steps with and without prompts are needed"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(batches, tmp_path, arguments, said, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.csv").write_text("tokens,items,seconds\n1,1,0\n")
    (tmp_path / "one.csv").write_text("".join(STEPS.splitlines(keepends=True)[:5]))
    places = {
        "BATCHES": str(batches),
        "OTHER": str(tmp_path / "other.csv"),
        "BROKEN": str(tmp_path / "broken.csv"),
        "ONE KIND": str(tmp_path / "one.csv"),
    }
    words = [places.get(word, word.replace("FOLDER", str(tmp_path))) for word in arguments]
    assert run(["fit-profile", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
