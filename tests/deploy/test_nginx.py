"""The shipped nginx configuration in a real nginx, before two servers that record what reaches them."""

import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from nginx import CHAT, NGINX, SOURCE, Site, Started, configure
from serving import wait_for
from upstream import EVENTS, Upstream, running

from app.settings import Settings

GIXY = Path(sys.executable).with_name("gixy")
SECRET = "a word that nobody logs"
pytestmark = pytest.mark.skipif(NGINX is None or shutil.which("openssl") is None, reason="no nginx or no openssl on this machine")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder, servers = tmp_path_factory.mktemp("nginx"), (Upstream("one"), Upstream("two"))
    with running(*servers):
        ports = configure(folder, servers)
        command = [NGINX, "-p", folder, "-c", folder / "nginx/nginx.conf", "-g", "daemon off;"]
        process = subprocess.Popen(command, stderr=(folder / "stderr").open("wb"))
        wait_for(lambda: process.poll() is not None or (folder / "nginx.pid").exists())
        assert process.poll() is None, (folder / "stderr").read_text()
        yield Started(process, servers, folder, ports, (f"127.0.1.{number}" for number in itertools.count(1)))
        process.terminate()
        process.wait(60)


@pytest.fixture
def site(started: Started) -> Iterator[Site]:
    address = next(started.addresses)
    started.reset()
    with started.client(address) as http:
        yield Site(http, address, started.servers, started.folder, started.ports[0])


def test_events_come_through_one_by_one(site: Site) -> None:
    for server in site.servers:
        server.behaviour = "stream"
    with site.http.stream("POST", CHAT, json={"stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        pieces = response.iter_text()
        assert next(pieces) == EVENTS[0]  # while the server holds the second event back
        for server in site.servers:
            server.go_on.set()
        assert "".join(pieces) == EVENTS[1]


def test_a_client_that_leaves_is_gone_at_the_server(site: Site) -> None:
    server = site.servers[0]
    conversation = site.conversation_on(server)
    server.behaviour = "stream"
    with site.http.stream("POST", CHAT, json={}, headers={"X-Conversation-Id": conversation}) as response:
        pieces = response.iter_text()  # keep a reference: a garbage-collected iterator closes its response
        next(pieces)
        assert not server.left.is_set()
    assert server.left.wait(60)


@pytest.mark.parametrize("header", ["x_conversation_id", "x_session_id"])
def test_a_named_conversation_stays_on_its_server(site: Site, header: str) -> None:
    served_by = {
        name: {site.chat(f"{turn}", **{header: f"conversation {name}"}).headers["x-server"] for turn in range(3)}
        for name in range(24)  # so many that they do not all have the same server, whichever ports the servers have
    }
    assert {len(names) for names in served_by.values()} == {1}
    assert set.union(*served_by.values()) == {"one", "two"}


def test_a_conversation_without_a_name_stays_by_its_first_message(site: Site) -> None:
    served_by = []
    for number in range(24):
        texts = [f"{SECRET} {number}", "an answer", "a question", "another answer", "another question"]
        served_by.append({site.chat(*texts[:turns]).headers["x-server"] for turns in (1, 3, 5)})
    assert {len(names) for names in served_by} == {1}
    assert set.union(*served_by) == {"one", "two"}, "the system message alone does not decide"


def test_prompt_cache_key_names_a_conversation(site: Site) -> None:
    def served_by(key: str, text: str) -> str:
        body = {"messages": [{"role": "user", "content": text}], "prompt_cache_key": key}
        name: str = site.http.post(CHAT, json=body).headers["x-server"]
        return name

    found = [{served_by(key, text) for text in "abc"} for key in map(str, range(24))]
    assert {len(names) for names in found} == {1} and set.union(*found) == {"one", "two"}


def test_what_is_no_conversation_goes_to_any_server(site: Site) -> None:
    assert {site.http.post("/v1/score", json={"text": "the same text"}).headers["x-server"] for _ in range(20)} == {"one", "two"}


def test_the_page_stays_on_a_server_by_the_visitors_address(site: Site) -> None:
    assert len({site.http.get(f"/ui/assets/{number}").headers["x-server"] for number in range(20)}) == 1


@pytest.mark.parametrize("behaviour", ["drain", "break off"])
def test_another_server_takes_over_and_only_what_it_must(site: Site, behaviour: str) -> None:
    failing, other = site.servers
    moved, kept = site.conversation_on(failing), site.conversation_on(other)
    failing.behaviour = behaviour  # type: ignore[assignment]
    failing.requests.clear()
    answers = [site.chat(text, x_conversation_id=moved) for text in ("first", "second")]
    assert [(answer.status_code, answer.headers["x-server"]) for answer in answers] == [(200, other.name)] * 2
    assert site.server_of(kept) is other


@pytest.mark.parametrize("path", [CHAT, "/ready", "/v1/files"])
@pytest.mark.parametrize("behaviour", ["drain", "break off"])
def test_requests_that_fail_on_every_server_take_none_from_the_others(site: Site, behaviour: str, path: str) -> None:
    """As of a model that no server reaches, or of a client that breaks off what it sends."""
    for server in site.servers:
        server.behaviour = behaviour  # type: ignore[assignment]
    failed = [site.http.post(path, json={}) if path != "/ready" else site.http.get(path) for _ in range(6)]
    assert {answer.status_code for answer in failed} == {503}
    for server in site.servers:
        server.behaviour = "answer"
    assert {site.chat("hello", x_conversation_id=f"{number}").status_code for number in range(12)} == {200}


def test_a_request_that_may_have_had_an_effect_is_sent_once(site: Site) -> None:
    failing, other = site.servers
    moved = {"X-Conversation-Id": site.conversation_on(failing)}
    failing.behaviour = "break off"
    other.requests.clear()
    answer = site.http.post("/v1/other", json={}, headers=moved)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and answer.json()["error"]["code"] == "not_ready"
    assert not other.requests


def test_without_any_server_the_client_is_told_when_to_come_back(site: Site) -> None:
    for server in site.servers:
        server.behaviour = "break off"
    answer = site.chat("hello", x_request_id="my-7")
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "service_unavailable"
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("1", "my-7")
    assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/admin/models",
        "/slots",
        "/slots/",
        "/overview",
        "//slots",
        "/%73lots",
        "/v1/../metrics",
        "/internal/health",
        "/v1/load_lora_adapter",
    ],
)
def test_what_operators_read_is_not_public(site: Site, path: str) -> None:
    answer = site.http.get(httpx.URL(site.http.base_url, raw_path=path.encode()), headers={"X-Request-Id": "my-8"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    assert answer.headers["x-request-id"] == "my-8" and "strict-transport-security" in answer.headers
    assert not [request for server in site.servers for request in server.requests]


def test_the_limit_of_a_body_is_the_servers(site: Site) -> None:
    limit = Settings(_env_file=None).server.max_body_bytes  # type: ignore[call-arg]
    assert site.http.post("/v1/score", content=b"x" * limit).status_code == 200
    answer = site.http.post("/v1/score", content=b"x" * (limit + 1), headers={"X-Request-Id": "my-9"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large" and str(limit) in answer.text
    assert answer.headers["x-request-id"] == "my-9" and "strict-transport-security" in answer.headers


@pytest.mark.parametrize("path", ["/v1/files", "/ui/jobs/files"])
def test_a_file_may_be_as_large_as_the_server_takes_it_and_touches_no_disk_on_the_way(site: Site, path: str) -> None:
    limit = Settings(_env_file=None).jobs.max_file_bytes  # type: ignore[call-arg]
    (allowed,) = re.findall(r"client_max_body_size (\d+)m;", (SOURCE / "litmus/litmus.conf").read_text())
    assert limit < int(allowed) * 2**20 < 1.1 * limit
    assert site.http.post(path, content=b"x" * 3_000_000).status_code == 200
    (request,) = [request for server in site.servers for request in server.requests]
    assert len(request.body) == 3_000_000 and not [file for file in site.folder.glob("nginx-body/**/*") if file.is_file()]
    for server in site.servers:
        server.behaviour = "break off"
    assert site.http.post(path, content=b"x").json()["error"]["code"] == "not_ready"


@contextmanager
def upload_of(site: Site, started: Started, size: int) -> Iterator[ssl.SSLSocket]:
    """A connection on which the head of an upload has been sent."""
    head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", started.ports[1]), 60, (site.address, 0)) as plain,
        started.trusted().wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        line.sendall(head.encode())
        yield line


def test_a_file_reaches_its_server_before_it_is_whole(site: Site, started: Started) -> None:
    with upload_of(site, started, 2000) as line:
        line.sendall(b"x" * 1000)
        wait_for(lambda: any(server.heads for server in site.servers))
        assert not any(server.requests for server in site.servers)


def test_a_file_that_is_too_large_is_refused_by_name(site: Site, started: Started) -> None:
    with upload_of(site, started, 200 * 2**20 + 1) as line:
        answer = line.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"the file is larger than 200 MB" in answer and b"\r\nX-Request-Id: " in answer
    assert not any(server.heads for server in site.servers)


def test_what_the_server_is_told_of_the_client(site: Site) -> None:
    forged = {"X-Forwarded-For": "10.0.0.1", "X-Real-IP": "10.0.0.1", "Forwarded": "for=10.0.0.1", "Authorization": "Bearer k"}
    site.http.get("/v1/models", headers=forged)
    headers = next(server.requests[-1].headers for server in site.servers if server.requests)
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"], headers["host"]) == (
        site.address,
        "https",
        site.http.base_url.netloc.decode(),
    )
    assert headers["authorization"] == "Bearer k" and not headers.keys() & {"x-real-ip", "forwarded"}


@pytest.mark.parametrize(("sent", "passed"), [("req-1.a_B", True), ("two words", False), ("x" * 129, False), (None, False)])
def test_a_request_id_is_passed_on_or_made(site: Site, sent: str | None, passed: bool) -> None:
    site.http.get("/v1/models", headers={} if sent is None else {"X-Request-Id": sent})
    received = next(server.requests[-1].headers["x-request-id"] for server in site.servers if server.requests)
    assert (received == sent) is passed and re.fullmatch(r"[\w.-]{1,128}", received)


def test_a_flood_from_one_address_is_refused_and_health_is_not(site: Site, started: Started) -> None:
    one = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    address = ("127.0.0.1", started.ports[1])
    with (
        socket.create_connection(address, 60, ("127.0.0.2", 0)) as plain,
        started.trusted().wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        line.sendall(one * 400 + last)
        received = b"".join(iter(lambda: line.recv(65_536), b""))
    statuses = re.findall(rb"HTTP/1.1 (\d{3}) ", received)
    assert len(statuses) == 402 and statuses[-2:] == [b"200", b"200"] and statuses[:200] == [b"200"] * 200
    assert b"429" in statuses and set(statuses) == {b"200", b"429"}
    refusal = received[received.index(b"HTTP/1.1 429") :][:700]
    assert b"\r\nRetry-After: 1\r\n" in refusal and b'"type": "rate_limit_error"' in refusal
    assert site.chat("hello").status_code == 200, "other addresses do not notice"


def test_plain_http_leads_to_https(site: Site) -> None:
    answer = httpx.post(f"http://127.0.0.1:{site.plain_port}{CHAT}?a=b", trust_env=False)
    assert (answer.status_code, answer.headers["location"]) == (308, f"https://127.0.0.1{CHAT}?a=b")


@pytest.mark.parametrize("unit", ['"', '"role"', '"role":"assistant",', "\\"])
def test_no_body_is_slow_to_look_through(site: Site, unit: str) -> None:
    answer = site.http.post(CHAT, content=(unit * (2_000_000 // len(unit))).encode())
    assert answer.status_code == 200 and answer.elapsed.total_seconds() < 30  # one that backtracked would take minutes


def test_no_log_holds_what_a_person_wrote(site: Site) -> None:
    site.chat(SECRET, authorization=f"Bearer {SECRET}")
    site.http.get("/v1/models", params={"q": SECRET})
    site.servers[0].behaviour = site.servers[1].behaviour = "break off"
    assert site.chat(SECRET, x_request_id="the-last").status_code == 503
    wait_for(lambda: "the-last" in (site.folder / "access.log").read_text())
    lines = [json.loads(line) for line in (site.folder / "access.log").read_text().splitlines()]
    assert {"path", "status", "server", "request_id"} <= lines[-1].keys() and lines[-1]["status"] == 503
    written = [path.read_bytes() for path in site.folder.rglob("*") if path.is_file()]
    assert not [text for text in written if SECRET.encode() in text or SECRET.replace(" ", "+").encode() in text]


@pytest.mark.skipif(not GIXY.exists(), reason="gixy is not installed")
def test_gixy_finds_no_weakness(started: Started) -> None:
    done = subprocess.run([GIXY, started.folder / "nginx/nginx.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
