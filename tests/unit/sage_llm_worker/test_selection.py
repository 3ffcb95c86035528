"""Which engine is chosen, and what is said about it."""

from pathlib import Path

import pytest

from sage_core import ConfigurationError, load_settings
from sage_core.config_files import find_config
from sage_llm_worker import LlmWorkerSettings
from sage_llm_worker.config_files import configured_model
from sage_llm_worker.model_store import ModelStore
from sage_llm_worker.selection import build_engine, select_engine
from sage_llm_worker.settings import LlmWorkerSection

SMALL = "Org/small-instruct"


class Host:
    """A host that has what it is told it has."""

    def __init__(self, modules=(), gpu=False, cached=(), hub=()):
        self.modules, self.gpu, self.cached, self.hub = set(modules), gpu, set(cached), set(hub)
        self.timeouts = []

    def has_module(self, name):
        return name in self.modules

    def has_gpu(self):
        return self.gpu

    def find(self, model):
        return Path("/models") / model if model in self.cached else None

    def can_fetch(self, model, timeout):
        self.timeouts.append(timeout)
        return model in self.hub


TORCH = ("torch", "transformers")


@pytest.mark.parametrize(
    ("host", "engine"),
    [
        (Host(), "extractive"),
        (Host(TORCH), "extractive"),
        (Host(("torch",), cached=[SMALL]), "extractive"),
        (Host(TORCH, cached=[SMALL]), "transformers"),
        (Host(TORCH, hub=[SMALL]), "transformers"),
        (Host((*TORCH, "vllm"), cached=[SMALL]), "transformers"),
        (Host((*TORCH, "vllm"), gpu=True, cached=[SMALL]), "vllm"),
        (Host((*TORCH, "vllm"), gpu=True), "extractive"),
    ],
)
def test_auto_serves_the_best_this_host_can(host, engine):
    selection = select_engine(LlmWorkerSection(), host, SMALL)
    assert selection.engine == engine
    assert selection.model == ("sage-extractive-reader" if engine == "extractive" else SMALL)
    assert selection.reason


def test_the_hub_is_asked_only_for_what_is_not_here_and_within_its_limit():
    host = Host(TORCH, cached=[SMALL])
    select_engine(LlmWorkerSection(), host, SMALL)
    assert host.timeouts == []
    host = Host(TORCH)
    select_engine(LlmWorkerSection(), host, SMALL)
    assert host.timeouts == [3.0]


@pytest.mark.parametrize(("gpu", "engine"), [(True, "vllm"), (False, "transformers")])
def test_a_named_model_gets_vllm_where_there_is_a_gpu(gpu, engine):
    host = Host((*TORCH, "vllm"), gpu=gpu)
    selection = select_engine(LlmWorkerSection(model="Org/big"), host, SMALL)
    assert (selection.engine, selection.model, selection.served_name) == (engine, "Org/big", "Org/big")
    assert not selection.is_fallible


def test_a_named_model_without_any_engine_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match=r"sage-serve\[llm\]"):
        select_engine(LlmWorkerSection(model="Org/big"), Host(), SMALL)


def test_an_engine_that_is_not_installed_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match=r"sage-serve\[vllm\]"):
        select_engine(LlmWorkerSection(engine="vllm", model="Org/big"), Host(TORCH), SMALL)


def test_a_folder_is_served_under_its_own_name(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    selection = select_engine(LlmWorkerSection(model=str(folder)), Host(TORCH), SMALL)
    assert selection.served_name == "my-model"
    named = LlmWorkerSection(model=str(folder), served_name="other")
    assert select_engine(named, Host(TORCH), SMALL).served_name == "other"


@pytest.mark.parametrize("engine", ["emulated", "extractive"])
def test_light_engines_need_nothing(engine):
    section = LlmWorkerSection(engine=engine, model="pool")
    selection = select_engine(section, Host(), None)
    assert build_engine(selection, section, None, None).model == "pool"
    assert (
        select_engine(LlmWorkerSection(model="sage-extractive-reader"), Host(), None).engine == "extractive"
    )


def test_the_shipped_default_model_is_found():
    assert configured_model("small_instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    assert configured_model("unheard") is None
    assert find_config("no/such.toml") is None


def test_the_users_own_configuration_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sage").mkdir()
    (tmp_path / "sage" / "models.toml").write_text('[models]\nsmall_instruct = "Org/mine"\n')
    assert configured_model("small_instruct") == "Org/mine"
    (tmp_path / "sage" / "models.toml").write_text("[models\n")
    with pytest.raises(ConfigurationError, match=r"models\.toml"):
        configured_model("small_instruct")


def test_settings_come_from_the_environment_and_unknown_ones_are_refused():
    environ = {
        "SAGE_LLM_WORKER__ENGINE": "emulated",
        "SAGE_LLM_WORKER__EMULATED__PROFILE": "rtx4090",
        "SAGE_LLM_WORKER__VLLM__EXTRA": '{"tensor_parallel_size": 2}',
    }
    section = load_settings(LlmWorkerSettings, environ=environ).llm_worker
    assert (section.engine, section.emulated.profile) == ("emulated", "rtx4090")
    assert section.vllm.extra == {"tensor_parallel_size": 2}
    with pytest.raises(ConfigurationError, match="ENGIN"):
        load_settings(LlmWorkerSettings, environ={"SAGE_LLM_WORKER__ENGIN": "x"})
    with pytest.raises(ConfigurationError, match="ENGINE"):
        load_settings(LlmWorkerSettings, environ={"SAGE_LLM_WORKER__ENGINE": "x"})


def test_folders_without_a_model_are_configuration_errors(tmp_path):
    store = ModelStore()
    with pytest.raises(ConfigurationError, match="does not exist"):
        store.find(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        store.find(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert store.find(str(tmp_path)) == tmp_path.resolve()
