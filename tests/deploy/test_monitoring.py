"""The files for Prometheus and Grafana: valid, and about metrics that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from observing import create_observed

from app.settings import FurtherSettings, Settings
from serve.upstream.models import Upstreams
from serve.workers.router import Router

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS, GRAFANA = DEPLOY / "prometheus", DEPLOY / "grafana"
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*"}
UNUSED = {"litmus:engine_report_age_seconds", "litmus:limits_storage_up"}  # metrics that only an alert looks at
RULES = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "litmus.json").read_text())
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    """Of the dashboard, with its variables filled in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def names_in(text: str) -> set[str]:
    return set(re.findall(r"litmus:\w+", text))


@pytest.fixture(scope="module")
def exposed(tiny_folder: Path) -> dict[str, set[str]]:
    """The names of each metric's samples, by the name of the metric, as a server gives them."""
    far = Settings(models=(FurtherSettings(name="far", upstream="http://127.0.0.1:9"),))

    def add_upstream(app: FastAPI, router: Router) -> None:
        Upstreams(far, router.observer)

    with create_observed(tiny_folder, add_upstream) as observed:
        text = observed.client.get("/metrics").text
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    return {
        name: {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name} for name, kind in types.items()
    }


@pytest.mark.parametrize("text", ["\n".join(expressions()), "\n".join(rule["expr"] for rule in RULES)], ids=["dashboard", "alerts"])
def test_what_is_asked_for_exists(text: str, exposed: dict[str, set[str]]) -> None:
    names = names_in(text)
    assert len(names) > 8
    assert names - set().union(*exposed.values()) == set()


def test_the_dashboard_shows_every_metric(exposed: dict[str, set[str]]) -> None:
    names = names_in("\n".join(expressions()))
    assert {metric for metric, samples in exposed.items() if not names & samples} - UNUSED == set()


def test_the_dashboard_is_laid_out_and_complete() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("litmus", "Litmus")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 20
    cells = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        covered = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not covered & cells and place["x"] + place["w"] <= 24, f"{panel['title']} lies over another panel, or beside the page"
        cells |= covered
    for panel in panels():
        assert panel["title"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "prometheus" for target in panel["targets"])
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"instance", "model"}


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/litmus.yaml").read_text())["providers"]
    assert provider["type"] == "file" and provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_the_page_says_what_to_do_at_every_alert() -> None:
    page = (DEPLOY.parent / "docs/observability.md").read_text()
    assert set(re.findall(r"^\| `(Litmus\w+)` \|", page, re.M)) == {rule["alert"] for rule in RULES}


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@needs_promtool
def test_prometheus_accepts_its_files() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(PROMETHEUS / "alerts.yml"))
    promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))


@needs_promtool
def test_prometheus_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{index}", "expr": expression} for index, expression in enumerate(expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


@needs_promtool
def test_prometheus_accepts_the_metrics(tiny_folder: Path) -> None:
    with create_observed(tiny_folder) as observed:
        observed.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        text = observed.client.get("/metrics").text
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=240)
    complaints = [
        line for line in (run.stdout + run.stderr).splitlines() if "should not contain ':'" not in line
    ]  # vLLM's names have it, too
    assert complaints == [], complaints
