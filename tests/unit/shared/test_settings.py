"""A wrong configuration stops the start and says all of what is wrong, and where."""

from pathlib import Path

import pytest
from pydantic import Field

from services.shared.settings import (
    ConfigError,
    MeshSettings,
    ServiceSettings,
    SettingsModel,
    config_directory,
    load_mesh,
    load_settings,
)


class Venue(SettingsModel):
    """One venue."""

    url: str = "wss://venue.example"
    """Where it is."""

    depth: int = Field(default=100, ge=1, le=5000)
    """Levels a side."""

    api_key: str | None = None
    """Credential."""


class Collector(SettingsModel):
    """Settings of a test."""

    symbols: list[str] = Field(default=["BTC-USDT"])
    """What is collected."""

    venues: dict[str, Venue] = Field(default_factory=dict)
    """By exchange."""

    batch_size: int
    """Events in one batch."""


def write(directory: Path, text: str, stem: str = "collector") -> Path:
    (directory / f"{stem}.yaml").write_text(text)
    return directory


def load(directory: Path, **environ: str) -> Collector:
    return load_settings(Collector, "collector", config_dir=directory, environ=environ)


def problems(directory: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, **environ)
    return str(caught.value)


def test_file_gives_typed_values(tmp_path: Path) -> None:
    write(tmp_path, "batch_size: 5\nvenues:\n  binance: {depth: 20}\nsymbols: [NO, on, 12:30]\n")
    settings = load(tmp_path)
    assert settings.venues["binance"].depth == 20
    # YAML 1.1 would read false, true and 750: a symbol is never a boolean.
    assert settings.symbols == ["NO", "on", "12:30"]


def test_settings_are_immutable(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "batch_size: 5\n"))
    with pytest.raises(ValueError, match="frozen"):
        settings.batch_size = 6  # type: ignore[misc]


def test_every_problem_is_told_at_once_with_file_line_and_key(tmp_path: Path) -> None:
    write(
        tmp_path,
        "symbols: BTC-USDT\nvenues:\n  binance:\n    dept: 20\n    depth: 0\n"
        "  okx: {depth: many}\n",
    )
    text = problems(tmp_path)
    file = tmp_path / "collector.yaml"
    assert f"{file}:4: venues.binance.dept: unknown key; did you mean 'depth'?" in text
    assert f"{file}:5: venues.binance.depth: expected to be greater than or equal to 1" in text
    assert f"{file}:6: venues.okx.depth: expected to be a valid integer, got 'many'" in text
    assert f"{file}:1: symbols: expected to be a valid list, got 'BTC-USDT'" in text
    assert "batch_size: expected a value, and it is missing (Events in one batch.)" in text


def test_key_given_twice_is_an_error(tmp_path: Path) -> None:
    text = problems(write(tmp_path, "batch_size: 5\nvenues:\n  okx: {}\n  okx: {}\n"))
    assert ":4: venues.okx: expected each key once, and line 3 has this one already" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("batch_size: [1\n", "expected valid YAML"),
        ("- a\n- b\n", "expected keys and values at the top level"),
        ("batch_size: !!python/object:os.system {}\n", "expected valid YAML"),
        ("? [a, b]\n: 1\n", "expected a plain name as a key"),
    ],
)
def test_file_that_is_no_mapping_is_an_error(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in problems(write(tmp_path, content))


def test_missing_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    text = problems(tmp_path)
    assert str(tmp_path / "collector.yaml") in text
    assert "MARKETPRISM_CONFIG_DIR" in text


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    write(tmp_path, "# nothing\n", "services")
    assert load_mesh(config_dir=tmp_path, environ={}) == MeshSettings()


def test_environment_overrides_one_value_whatever_the_case(tmp_path: Path) -> None:
    write(tmp_path, "batch_size: 5\nvenues:\n  okx: {depth: 20}\n")
    settings = load(
        tmp_path,
        MARKETPRISM__COLLECTOR__VENUES__OKX__DEPTH="400",
        marketprism__collector__symbols="[ETH-USDT, SOL-USDT]",
    )
    assert settings.venues["okx"].depth == 400
    assert settings.symbols == ["ETH-USDT", "SOL-USDT"]


def test_override_of_a_section_comes_before_one_inside_it(tmp_path: Path) -> None:
    write(tmp_path, "batch_size: 5\n")
    settings = load(
        tmp_path,
        MARKETPRISM__COLLECTOR__VENUES__OKX__DEPTH="7",
        MARKETPRISM__COLLECTOR__VENUES="{okx: {depth: 1, url: 'ws://x'}}",
    )
    assert settings.venues["okx"] == Venue(depth=7, url="ws://x")


def test_bad_override_names_the_variable(tmp_path: Path) -> None:
    write(tmp_path, "batch_size: 5\nvenues:\n  okx: {}\n")
    text = problems(
        tmp_path,
        MARKETPRISM__COLLECTOR__BATCHSIZE="1",
        MARKETPRISM__COLLECTOR__BATCH_SIZE="many",
        MARKETPRISM__COLLECTOR__VENUES__BINANCE__DEPTH="1",
        MARKETPRISM__COLLECTOR="1",
    )
    assert "MARKETPRISM__COLLECTOR__BATCHSIZE: unknown key 'batchsize'" in text
    assert "did you mean 'batch_size'?" in text
    assert (
        "environment variable MARKETPRISM__COLLECTOR__BATCH_SIZE: batch_size: "
        "expected to be a valid integer, got 'many'" in text
    )
    assert "unknown key 'venues.binance'; known are okx" in text
    assert "MARKETPRISM__COLLECTOR: expected MARKETPRISM__COLLECTOR__<KEY>" in text


def test_override_of_an_unknown_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "{}", "services")
    with pytest.raises(ConfigError, match=r"got 'SERVCES'; did you mean 'services'\?"):
        load_mesh(config_dir=tmp_path, environ={"MARKETPRISM__SERVCES__HOST": "::1"})


def test_secrets_never_show_in_an_error(tmp_path: Path) -> None:
    write(
        tmp_path,
        "batch_size: 'nats://user:hunter2@host'\n"
        "venues:\n  okx: {api_key: [hunter3]}\n  deribit: {depth: {token: hunter4}}\n",
    )
    text = problems(tmp_path)
    assert "hunter" not in text
    assert "********" in text


def test_usual_variables_override_the_mesh_settings(tmp_path: Path) -> None:
    write(tmp_path, "{}", "services")
    mesh = load_mesh(
        config_dir=tmp_path,
        environ={
            "NATS_URL": "nats://broker:4333",
            "CLICKHOUSE_URL": "http://db:8123",
            "SERVICE_REGISTRY_URL": "http://consul:8500",
            "PROMETHEUS_URL": "http://prom:9090",
            "REDIS_URL": "redis://cache",
        },
    )
    assert mesh.nats.url == "nats://broker:4333"
    assert mesh.clickhouse.url == "http://db:8123"
    assert mesh.registry.url == "http://consul:8500"
    assert mesh.prometheus.url == "http://prom:9090"
    assert mesh.redis.url == "redis://cache"


def test_nats_url_follows_host_and_port_when_absent(tmp_path: Path) -> None:
    write(tmp_path, "nats: {host: 127.0.0.2, port: 4333}\n", "services")
    assert load_mesh(config_dir=tmp_path, environ={}).nats.url == "nats://127.0.0.2:4333"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.1.2.3", "10.1.2.3"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")],
)
def test_servers_are_reached_where_they_listen_unless_told(
    tmp_path: Path, host: str, expected: str
) -> None:
    write(tmp_path, f'host: "{host}"', "services")
    assert load_mesh(config_dir=tmp_path, environ={}).advertise_host == expected
    named = {"MARKETPRISM__SERVICES__ADVERTISE_HOST": "collector"}
    assert load_mesh(config_dir=tmp_path, environ=named).advertise_host == "collector"


def test_two_servers_cannot_have_one_port(tmp_path: Path) -> None:
    write(tmp_path, "services:\n  echo: {grpc_port: 50081}\n", "services")
    with pytest.raises(ConfigError, match=r"services\.collector\.grpc_port and .* both have 50081"):
        load_mesh(config_dir=tmp_path, environ={})


def test_port_zero_may_be_shared() -> None:
    mesh = MeshSettings(services={"a": ServiceSettings(), "b": ServiceSettings()})
    assert mesh.service("a") == mesh.service("b")


def test_service_without_ports_is_told_what_to_add() -> None:
    with pytest.raises(ConfigError, match=r"services\.echo: expected grpc_port and http_port"):
        MeshSettings().service("echo")


def test_shipped_configuration_is_the_default() -> None:
    assert load_mesh(environ={}) == MeshSettings()


def test_everything_listens_on_loopback_by_default() -> None:
    mesh = MeshSettings()
    assert (mesh.host, mesh.nats.host) == ("127.0.0.1", "127.0.0.1")


def test_data_dir_is_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert MeshSettings().data_dir == tmp_path / "var"


def test_configuration_directory_is_argument_then_variable_then_repository(tmp_path: Path) -> None:
    environ = {"MARKETPRISM_CONFIG_DIR": str(tmp_path)}
    assert config_directory("/etc/x", environ) == Path("/etc/x")
    assert config_directory(None, environ) == tmp_path
    assert (config_directory(None, {}) / "services.yaml").exists()


@pytest.mark.parametrize("model", [MeshSettings, *MeshSettings.__subclasses__()])
def test_every_setting_is_described(model: type[SettingsModel]) -> None:
    def undescribed(kind: type[SettingsModel]) -> list[str]:
        found = []
        for name, field in kind.model_fields.items():
            if not field.description:
                found.append(f"{kind.__name__}.{name}")
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, SettingsModel):
                found += undescribed(inner)
        return found

    assert undescribed(model) == []
