"""Settings: environment over file over defaults; what is wrong is refused by key, value and origin."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from sage_core import ByteSize, ConfigurationError, Duration, ServiceSettings, load_settings
from sage_core.settings import Section


class Limits(Section):
    patience: Duration = Field(5.0, description="How long it waits.")


class GatewaySection(Section):
    port: int = Field(8080, ge=1, le=65535)
    max_body: ByteSize = Field(4 * 2**20)
    names: list[str] = Field(default_factory=list)
    limits: Limits = Field(default_factory=Limits)


class GatewaySettings(ServiceSettings):
    gateway: GatewaySection = Field(default_factory=GatewaySection)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sage.toml"
    path.write_text(
        'instance = "blue"\n[gateway]\nport = 9000\nmax_body = "1MiB"\n[gateway.limits]\npatience = "250ms"\n'
        '[scheduler]\npolicy = "hold"\n[telemetry]\nlog_level = "debug"\n'
    )
    return path


def refusal(file: Path | None, environ: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(GatewaySettings, file, environ)
    return refused.value.message


def test_defaults_hold_where_nothing_is_said() -> None:
    settings = load_settings(GatewaySettings, None, {})
    assert (settings.instance, settings.gateway.port, settings.gateway.limits.patience) == (
        "default",
        8080,
        5.0,
    )


def test_the_file_wins_over_defaults_with_units_read(file: Path) -> None:
    gateway = load_settings(GatewaySettings, file, {}).gateway
    assert (gateway.port, gateway.max_body, gateway.limits.patience) == (9000, 2**20, 0.25)


def test_environment_wins_over_file_wins_over_defaults(file: Path) -> None:
    settings = load_settings(
        GatewaySettings, file, {"SAGE_GATEWAY__PORT": "9001", "SAGE_GATEWAY__LIMITS__PATIENCE": "2s"}
    )
    assert settings.gateway.port == 9001
    assert settings.gateway.limits.patience == 2.0
    assert settings.gateway.max_body == 2**20
    assert settings.instance == "blue"
    assert settings.telemetry.log_level == "debug"
    assert settings.telemetry.recent_spans == 8192


def test_the_file_may_be_named_by_the_environment_and_an_argument_wins(file: Path, tmp_path: Path) -> None:
    assert load_settings(GatewaySettings, None, {"SAGE_CONFIG": str(file)}).gateway.port == 9000
    other = tmp_path / "other.toml"
    other.write_text("[gateway]\nport = 7000\n")
    assert load_settings(GatewaySettings, other, {"SAGE_CONFIG": str(file)}).gateway.port == 7000


def test_lists_in_the_environment_are_json() -> None:
    settings = load_settings(GatewaySettings, None, {"SAGE_GATEWAY__NAMES": '["a", "b"]'})
    assert settings.gateway.names == ["a", "b"]


def test_tables_of_other_services_may_be_present(file: Path) -> None:
    settings = load_settings(
        GatewaySettings, file, {"SAGE_SCHEDULER__POLICY": "x", "SAGE_LLM_WORKER__ENGINE": "y"}
    )
    assert settings.gateway.port == 9000


def test_variables_of_others_are_not_ours() -> None:
    assert load_settings(GatewaySettings, None, {"SAGEMAKER_X": "1", "HOME": "/h"}).gateway.port == 8080


def test_settings_are_frozen() -> None:
    settings = load_settings(GatewaySettings, None, {})
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings.gateway, "port", 1)  # noqa: B010 - the type checker would refuse it too


def test_an_unknown_key_in_the_file_is_refused_by_name(file: Path) -> None:
    file.write_text("[gateway]\nprot = 1\n")
    assert refusal(file, {}) == f"{file}: unknown key 'gateway.prot'"


def test_an_unknown_nested_key_in_the_file_is_refused_by_name(file: Path) -> None:
    file.write_text("[gateway.limits]\npatients = 1\n")
    assert refusal(file, {}) == f"{file}: unknown key 'gateway.limits.patients'"


def test_an_unknown_table_is_refused_with_the_known_ones(file: Path) -> None:
    file.write_text("[gatway]\nport = 1\n")
    message = refusal(file, {})
    assert f"{file}: unknown table [gatway]" in message
    assert "gateway" in message


@pytest.mark.parametrize(
    "name", ["SAGE_GATWAY__PORT", "SAGE_PORT", "SAGE_GATEWAY", "SAGE_", "SAGE_GATEWAY_PORT"]
)
def test_an_unknown_variable_is_refused_by_name(name: str) -> None:
    assert f"unknown environment variable {name};" in refusal(None, {name: "1"})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("SAGE_GATEWAY__PROT", "gateway.prot"),
        ("SAGE_GATEWAY__LIMITS__PATIENTS", "gateway.limits.patients"),
        ("SAGE_BUS__ULR", "bus.ulr"),
    ],
)
def test_an_unknown_nested_variable_is_refused_by_name(name: str, key: str) -> None:
    assert refusal(None, {name: "1"}) == f"{name}: unknown key {key!r}"


def test_a_bad_unit_names_key_value_and_file(file: Path) -> None:
    file.write_text("[gateway.limits]\npatience = '2 parsecs'\n")
    message = refusal(file, {})
    for part in (str(file), "gateway.limits.patience", "'2 parsecs'", "'parsecs'", "ms"):
        assert part in message


def test_a_bad_value_names_key_value_and_variable(file: Path) -> None:
    message = refusal(file, {"SAGE_GATEWAY__PORT": "99999"})
    for part in ("SAGE_GATEWAY__PORT", "gateway.port", "'99999'", "65535"):
        assert part in message
    assert str(file) not in message


def test_every_problem_is_listed_one_line_each(file: Path) -> None:
    file.write_text("[gateway]\nport = 'x'\nprot = 1\nmax_body = '1 stone'\n")
    lines = refusal(file, {"SAGE_TELEMETRY__LOG_LEVEL": "loud"}).splitlines()
    assert len(lines) == 4
    assert sum(line.startswith(str(file)) for line in lines) == 3
    assert sum(line.startswith("SAGE_TELEMETRY__LOG_LEVEL") for line in lines) == 1


def test_a_value_where_a_table_belongs_is_refused(file: Path) -> None:
    file.write_text("gateway = 5\n")
    assert "gateway" in refusal(file, {})
    assert "is a value, not a table" in refusal(file, {"SAGE_GATEWAY__PORT": "1"})


def test_a_missing_file_is_named() -> None:
    assert refusal(Path("/nowhere/x.toml"), {}) == "settings file /nowhere/x.toml does not exist"


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    assert f"settings file {tmp_path} cannot be read" in refusal(tmp_path, {})


@pytest.mark.parametrize("content", [b"[gateway", b"\xff\xfe", b"port = \n"])
def test_a_file_that_is_not_toml_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert str(file) in refusal(file, {})


def test_a_choice_names_what_is_accepted(file: Path) -> None:
    assert refusal(None, {"SAGE_TELEMETRY__OTLP_PROTOCOL": "udp"}) == (
        "SAGE_TELEMETRY__OTLP_PROTOCOL: telemetry.otlp_protocol = 'udp': expected one of http, grpc"
    )
    file.write_text("[telemetry]\nlog_level = 'loud'\n")
    assert refusal(file, {}) == (
        f"{file}: telemetry.log_level = 'loud': expected one of debug, info, warning, error"
    )


@pytest.mark.parametrize("value", ["notjson", "[not json"])
def test_text_where_a_list_belongs_names_its_form(file: Path, value: str) -> None:
    message = refusal(None, {"SAGE_GATEWAY__NAMES": value})
    assert (
        message
        == f"""SAGE_GATEWAY__NAMES: gateway.names = {value!r}: expected a JSON list, e.g. ["a", "b"]"""
    )
    file.write_text(f"[gateway]\nnames = '{value}'\n")
    assert refusal(file, {}).endswith("""expected a list, e.g. ["a", "b"]""")


def test_an_instance_name_that_makes_no_folder_is_refused_with_its_source(file: Path) -> None:
    file.write_text('instance = "a b"\n')
    message = refusal(file, {})
    assert message.startswith(f"{file}: instance = 'a b': expected 1 to 32 of a-z, 0-9 and '-'")
