"""What Prometheus scrapes of a real server with a real job; and the rules and the dashboard that stand on it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from fleets import Fleet, free_port, wait_for, write_job
from prometheus_client.parser import text_string_to_metric_families

from server.client.address import TOKEN_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)
OPS = Path(__file__).parents[2] / "docs" / "ops"
Sample = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("metrics"), tiny_bundle, free_port(), external=False)
    yield made
    made.stop()


def parsed(text: str) -> dict[Sample, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def scraped(fleet: Fleet) -> tuple[dict[Sample, float], dict[str, Any]]:
    """What is scraped after a job, over TCP with the token; and the job as commands show it."""
    port = free_port()
    server = fleet.stay("--mqtt-port", str(fleet.port), "--api-port", str(port))
    server.wait_event("serving")
    fleet.device("pi-1", 0, stays=True)
    fleet.device("pi-2", 1, stays=True)
    wait_for(lambda: sum(d["state"] == "online" for d in fleet.covey("device", "list")["devices"]) == 2, "devices", 90)
    job = write_job(fleet.root, name="first", rounds=3, min_devices=2)
    fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path))
    assert fleet.covey("job", "watch", "first")["state"] == "finished"
    url = f"http://127.0.0.1:{port}/metrics"
    assert httpx.get(url).status_code == 401
    token = (fleet.state_dir / TOKEN_FILE).read_text().strip()
    answer = httpx.get(url, headers={"authorization": f"Bearer {token}"})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.text), fleet.covey("job", "show", "first")


def test_a_scrape_says_what_the_commands_say(scraped: tuple[dict[Sample, float], dict[str, Any]], fleet: Fleet) -> None:
    found, shown = scraped

    def of_job(name: str) -> float:
        return found[f"covey_job_{name}", (("job", "first"),)]

    assert found["covey_devices", (("state", "online"),)] == found["covey_devices_here", ()] == 2
    assert found["covey_jobs", (("state", "finished"),)] == 1
    assert of_job("rounds_total") == shown["rounds"] == 3
    assert of_job("reports_total") == shown["reports"] == 6
    assert of_job("held_out_loss") == shown["loss_end"]
    assert of_job("held_out_accuracy_ratio") == shown["accuracy_end"]
    assert of_job("front_passes_total") == shown["front_passes"] > 0
    assert of_job("upload_bytes_total") == pytest.approx(6 * shown["bytes_up_per_device_round"])
    assert of_job("last_round_seconds") >= 0  # the ledger has whole seconds
    assert not any(labels for name, labels in found if "epsilon" in name)  # the job is not private: nothing is known
    lines = fleet.covey("server", "metrics")["metrics"]  # over the socket, without a token
    assert parsed(lines)["covey_job_rounds_total", (("job", "first"),)] == 3


def test_names_have_units_and_no_series_is_of_one_device(
    scraped: tuple[dict[Sample, float], dict[str, Any]],
) -> None:
    own = {name for name, _ in scraped[0] if name.startswith("covey_")}
    assert all(re.fullmatch(r"covey_[a-z_]+", name) for name in own)
    assert not [name for name in own if re.search(r"_(ms|kb|mb|percent|minutes)(_|$)", name)]
    assert not [value for _, labels in scraped[0] for _, value in labels if value in ("pi-1", "pi-2")]


def test_a_killed_server_comes_back_with_the_same_counts(
    scraped: tuple[dict[Sample, float], dict[str, Any]], fleet: Fleet
) -> None:
    fleet.processes[0].popen.send_signal(signal.SIGKILL)
    fleet.processes[0].popen.wait()
    assert "no server answers" in fleet.covey("server", "metrics", code=7)["error"]
    fleet.stay().wait_event("serving")
    again = parsed(fleet.covey("server", "metrics")["metrics"])
    counted = {key: value for key, value in scraped[0].items() if key[0].startswith("covey_job_")}
    assert counted.items() <= again.items()


def _names(text: str) -> set[str]:
    return set(re.findall(r"\bcovey_[a-z_]+", text))


def test_rules_and_dashboard_name_what_is_scraped(scraped: tuple[dict[Sample, float], dict[str, Any]]) -> None:
    families = {name for name, _ in scraped[0]}
    # Without a sample where nothing was refused or rolled out yet, and no device has held-out rows:
    families |= {"covey_messages_refused_total", "covey_rollout_devices", "covey_device_held_out_accuracy_ratio"}
    rules = yaml.safe_load((OPS / "covey-alerts.yml").read_text())["groups"][0]["rules"]
    assert all(rule["annotations"].keys() >= {"summary", "command"} and "severity" in rule["labels"] for rule in rules)
    asked = {rule["alert"]: _names(rule["expr"]) for rule in rules}
    panels = json.loads((OPS / "covey-grafana.json").read_text())["panels"]
    asked |= {panel["title"]: _names(" ".join(t["expr"] for t in panel["targets"])) for panel in panels}
    assert {title: names - families for title, names in asked.items() if names - families} == {}
    assert families >= {"covey_server_start_time_seconds"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_takes_rules_and_configuration(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "covey-alerts.yml"):
        text = (OPS / name).read_text().replace("/etc/prometheus/covey-token", str(tmp_path / "token"))
        (tmp_path / name).write_text(text)
    (tmp_path / "token").write_text("t\n")
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
