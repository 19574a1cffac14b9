"""A real nginx with the shipped configuration, set up for a test: what `test_nginx.py` asks."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from ports import free_port
from upstream import Upstream

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "deploy/nginx"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
CHAT = "/v1/chat/completions"
CERTIFICATE = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext"


@dataclass(frozen=True)
class Site:
    """A running nginx. `http` comes from `address`, another one for each test, as nginx counts by address."""

    http: httpx.Client
    address: str
    servers: tuple[Upstream, Upstream]
    folder: Path
    plain_port: int

    def chat(self, *texts: str, **headers: str) -> httpx.Response:
        """A chat of the turns `texts`: the user's, the model's, and so on."""
        turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
        body = {"messages": [{"role": "system", "content": "You are kind."}, *turns], "model": "m", "max_tokens": len(texts)}
        return self.http.post(CHAT, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def server_of(self, conversation: str) -> Upstream:
        name = self.chat("hello", x_conversation_id=conversation).headers["x-server"]
        return next(server for server in self.servers if server.name == name)

    def conversation_on(self, server: Upstream) -> str:
        return next(name for name in map(str, range(100)) if self.server_of(name) is server)


@dataclass(frozen=True)
class Started:
    process: subprocess.Popen[bytes]
    servers: tuple[Upstream, Upstream]
    folder: Path
    ports: tuple[int, int]
    addresses: Iterator[str]

    @contextmanager
    def client(self, address: str) -> Iterator[httpx.Client]:
        transport = httpx.HTTPTransport(local_address=address, verify=self.trusted())
        with httpx.Client(transport=transport, base_url=f"https://127.0.0.1:{self.ports[1]}", timeout=60) as http:
            yield http

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "tls_certificate"))

    def reset(self) -> None:
        """Both servers answer."""
        for server in self.servers:
            server.behaviour = "answer"
            server.requests.clear()
            server.heads = 0
            server.go_on.clear()
            server.left.clear()


def _port() -> int:
    """For plain http. gixy takes every port with 443 in it for one of https."""
    return next(port for port in iter(free_port, None) if "443" not in str(port))


def configure(folder: Path, servers: tuple[Upstream, ...]) -> tuple[int, int]:
    """Copies the shipped files with the paths, ports and servers of a test, and returns the ports for http and https."""
    plain, encrypted = _port(), free_port()
    shutil.copytree(SOURCE, folder / "nginx")
    paths = {
        "worker_processes auto": "worker_processes 1",
        "/tmp/nginx": f"{folder}/nginx",
        "/var/log/nginx": str(folder),
        "/run/secrets": str(folder),
        "listen 8080": f"listen 127.0.0.1:{plain}",
        "listen 8443": f"listen 127.0.0.1:{encrypted}",
        "rate=50r/s": "rate=1r/s",  # so slow that it does not matter how fast this machine is: the 200 at once are as shipped
    }
    for path in (folder / "nginx").rglob("*.conf"):
        text = path.read_text()
        for shipped, here in paths.items():
            text = text.replace(shipped, here)
        path.write_text(text)
    upstream = folder / "nginx/litmus/upstream.conf"
    line = next(line for line in upstream.read_text().splitlines() if line.startswith("server server:8000 "))
    upstream.write_text("\n".join(line.replace("server:8000", f"127.0.0.1:{server.port}") for server in servers))
    command = [*CERTIFICATE.split(), "subjectAltName=IP:127.0.0.1", "-keyout", folder / "tls_key", "-out", folder / "tls_certificate"]
    subprocess.run(command, check=True, capture_output=True)
    return plain, encrypted
