"""Which model a settings entry means, and where it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_core import ConfigurationError, load_settings
from sage_embedding_worker.locations import ModelSpec, locate, parse_model
from sage_embedding_worker.sentence_encoder import Compute, has_native_bfloat16
from sage_embedding_worker.settings import EmbeddingWorkerSettings


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("BAAI/bge-small-en", ModelSpec("BAAI/bge-small-en", "BAAI/bge-small-en")),
        ("/models/bge", ModelSpec("bge", "/models/bge")),
        ("small = ./bge", ModelSpec("small", "./bge")),
    ],
)
def test_an_entry_is_a_hub_name_a_folder_or_both(entry: str, expected: ModelSpec) -> None:
    assert parse_model(entry) == expected


@pytest.mark.parametrize("entry", ["", "=x", "x=", " "])
def test_an_entry_without_a_name_or_folder_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="expected a hub name, a folder, or NAME=FOLDER"):
        parse_model(entry)


def test_the_offline_default_is_found_in_its_package() -> None:
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        assert (Path(locate(parse_model(name))) / "modules.json").is_file()


def test_an_own_folder_wins_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert locate(ModelSpec("all-MiniLM-L6-v2", str(tmp_path))) == str(tmp_path)
    assert locate(parse_model("some/model")) == "some/model"
    with pytest.raises(ConfigurationError, match=r"model 'm': folder .*/gone does not exist"):
        locate(ModelSpec("m", str(tmp_path / "gone")))


def test_settings_take_several_models_and_refuse_one_name_twice(tmp_path: Path) -> None:
    environ = {"SAGE_EMBEDDING_WORKER__MODELS": '["a/b", "small=/models/x"]'}
    settings = load_settings(EmbeddingWorkerSettings, environ=environ)
    assert [spec.name for spec in settings.embedding_worker.model_specs] == ["a/b", "small"]
    with pytest.raises(ConfigurationError, match="'small' appears twice"):
        load_settings(
            EmbeddingWorkerSettings,
            environ={"SAGE_EMBEDDING_WORKER__MODELS": '["small=/models/y", "small=/models/x"]'},
        )


def test_bfloat16_is_chosen_where_the_cpu_has_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for flags, expected in (("fpu avx2 avx512_bf16", True), ("fpu amx_bf16", True), ("fpu avx2", False)):
        cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert has_native_bfloat16(cpuinfo) is expected
    cpuinfo.write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert has_native_bfloat16(cpuinfo)
    assert not has_native_bfloat16(tmp_path / "missing")
    assert Compute(dtype="float32").resolved_dtype() == "float32"
    assert Compute(device="cuda").resolved_dtype() == "float32"
