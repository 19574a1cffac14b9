"""What deploy/compose.yaml promises: a valid file, guarded containers, closed ports, time to drain, and commands that run."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port
from serving import wait_for

from app.settings import Settings, read
from serve.processes import SHUTDOWN_MARGIN_S
from ui.__main__ import expand_short_options

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/compose.yaml"
CHECK = Path(sys.executable).with_name("check-jsonschema")
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
EACH = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.skipif(not CHECK.exists(), reason="check-jsonschema is not installed")
def test_schema() -> None:
    done = subprocess.run([CHECK, "--builtin-schema", "vendor.compose-spec", FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_profile_is_a_service() -> None:
    profiles = [profile for service in SERVICES.values() for profile in service["profiles"]]
    assert sorted(profiles) == ["bot", "gpu", "grafana", "nginx", "prometheus", "redis", "server", "ui"]


@EACH
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service and "network_mode" not in service


@EACH
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert f"FROM runtime AS {service['build']['target']}\n" in (ROOT / "Dockerfile").read_text()
    else:
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+(-\w+)?", service["image"]), service["image"]


@EACH
def test_only_nginx_is_reached_from_outside(name: str) -> None:
    outside = [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")]
    assert bool(outside) is (name == "nginx")


@EACH
def test_every_container_tells_its_health(name: str) -> None:
    service = SERVICES[name]
    of_image = service.get("build") and name not in {"ui", "bot"}  # these are no servers of models
    assert (
        of_image
        or (name == "bot" and service["healthcheck"] == {"disable": True})
        or service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    )


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_a_stop_waits_for_the_drain(name: str) -> None:
    seconds = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings(_env_file=None).server.drain_s + SHUTDOWN_MARGIN_S  # type: ignore[call-arg]


def test_the_addresses_that_servers_trust_are_those_of_nginxs_network() -> None:
    subnet = COMPOSE["networks"]["edge"]["ipam"]["config"][0]["subnet"]
    for name in ("server", "server-gpu"):
        assert yaml.safe_load(SERVICES[name]["environment"]["LITMUS_SERVER__TRUSTED_PROXIES"]) == [subnet]
    assert "edge" in SERVICES["nginx"]["networks"] and COMPOSE["networks"]["inside"] == {"internal": True}
    assert SERVICES["redis"]["networks"] == ["inside"]


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_what_cannot_be_made_again_has_a_volume_of_its_own(name: str) -> None:
    folder = re.findall(r"LITMUS_JOBS__FOLDER=(\S+)", (ROOT / "Dockerfile").read_text())
    assert folder == ["/var/lib/litmus/jobs"] and "-m 700 /home/litmus/.cache /var/lib/litmus\n" in (ROOT / "Dockerfile").read_text()
    assert {"state:/var/lib/litmus", "cache:/home/litmus/.cache"} <= set(SERVICES[name]["volumes"]) and "state" in COMPOSE["volumes"]
    assert "the volume `litmus_state`" in (ROOT / "docs/operations.md").read_text()


def test_no_secret_stands_in_the_file() -> None:
    for service in SERVICES.values():
        secret = [name for name in service.get("environment", {}) if re.search("PASSWORD|KEY|TOKEN|SECRET", name)]
        assert all(name.endswith("__FILE") and service["environment"][name].startswith("/run/secrets/") for name in secret)
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
    ignored = (ROOT / ".gitignore").read_text().split()
    assert all(source["file"].startswith("secrets/") for source in COMPOSE["secrets"].values()) and "/deploy/secrets/" in ignored


def test_nginx_runs_with_the_shipped_files() -> None:
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["nginx"]["volumes"])
    assert mounts == {"./nginx/nginx.conf": "/etc/nginx/nginx.conf", "./nginx/litmus": "/etc/nginx/litmus"}
    assert all((FILE.parent / source).exists() for source in mounts)
    shipped = "".join(path.read_text() for path in (FILE.parent / "nginx").rglob("*.conf"))
    assert set(re.findall(r"/run/secrets/(\w+)", shipped)) == set(SERVICES["nginx"]["secrets"])
    assert {port.rpartition(":")[2] for port in SERVICES["nginx"]["ports"]} == set(re.findall(r"listen (\d+)", shipped))


def test_the_pages_command_is_understood() -> None:
    command = SERVICES["ui"]["command"]
    assert command[:3] == ["python", "-m", "ui"]
    settings = read(expand_short_options(command[3:]), program="ui")
    assert (settings.server.host, settings.ui.server) == ("0.0.0.0", "http://server:8000")
    assert SERVICES["ui"]["ports"][0].endswith(f":{settings.ui.port}")


def test_the_bots_command_is_understood_and_its_secrets_come_as_a_file(tmp_path: Path) -> None:
    """Run as the container runs it, with a program that shows what it gets in the place of python."""
    (tmp_path / "telegram").write_text("LITMUS_TELEGRAM__TOKEN=1:a-token\nLITMUS_TELEGRAM__KEY=a-key\n")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$LITMUS_TELEGRAM__TOKEN $LITMUS_TELEGRAM__KEY $*"\n')
    (tmp_path / "python").chmod(0o755)
    shell, option, script, name = SERVICES["bot"]["entrypoint"]
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    shown = subprocess.run(
        [shell, option, script, name, *SERVICES["bot"]["command"]], env=environment, capture_output=True, text=True
    ).stdout
    assert shown == "1:a-token a-key -m ui.telegram --telegram.server http://server:8000\n"
    assert read(SERVICES["bot"]["command"], program="ui.telegram").telegram.server == "http://server:8000"
    assert int(SERVICES["bot"]["stop_grace_period"].removesuffix("s")) > Settings(_env_file=None).telegram.drain_s  # type: ignore[call-arg]


@contextmanager
def redis(folder: Path, port: int) -> Iterator[None]:
    """Redis as its container starts it, but on a port of ours."""
    (folder / "redis_password").write_text("correct horse\n".replace(" ", "-"))
    script = SERVICES["redis"]["entrypoint"][2].replace("$$", "$").replace("/run/secrets", str(folder))
    script = script.replace("redis-server - ", f"redis-server - --bind 127.0.0.1 --port {port} ")
    process = subprocess.Popen(["sh", "-c", script], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None
        assert b"correct" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0, "the signal reaches redis, not a shell"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(port: int, *commands: str) -> list[str]:
    with socket.create_connection(("127.0.0.1", port), 60) as line, line.makefile("rb") as answers:
        line.sendall("".join(f"{command}\r\n" for command in commands).encode())
        return [answers.readline().decode().strip() for _ in commands]


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on this machine")
def test_redis_wants_its_password(tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port):
        assert ask(port, "PING")[0].startswith("-NOAUTH")
        assert ask(port, "AUTH wrong", "PING")[1].startswith("-NOAUTH")
        assert ask(port, "AUTH correct-horse", "PING") == ["+OK", "+PONG"]
