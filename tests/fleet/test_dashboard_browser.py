"""The dashboard in headless Chromium while a real job runs: live charts, filters, no faults of access, no script."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, serious_findings
from fleets import Fleet, free_port, wait_for, write_job
from relay import relay_to

from server.client.address import TOKEN_FILE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_PAGES = ("/ui/", "/ui/jobs", "/ui/jobs/live", "/ui/jobs/live/bandit", "/ui/devices/pi-1", "/ui/rollouts", "/ui/joins",
          "/ui/audit", "/ui/jobs/nothing", "/ui/new/job", "/ui/new/rollout", "/ui/do/stop?target=live")  # fmt: skip
_WAIT_MS = 120_000


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where screenshots go: a folder that is named by COVEY_SCREENSHOTS, else the test's own, which pytest keeps."""
    folder = Path(os.environ.get("COVEY_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def address(fleet: Fleet) -> tuple[str, dict[str, str]]:
    """A server with two devices and a job: its address, and the headers that its token is given with."""
    port = free_port()
    server = fleet.stay("--mqtt-port", str(fleet.port), "--api-port", str(port))
    server.wait_event("serving")
    fleet.device("pi-1", 0, stays=True)
    fleet.device("pi-2", 1, stays=True)
    job = write_job(fleet.root, name="live", rounds=5000, min_devices=2)
    fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path))
    token = (fleet.state_dir / TOKEN_FILE).read_text().strip()
    return f"http://127.0.0.1:{port}", {"authorization": f"Bearer {token}"}


def test_a_jobs_page_follows_it_and_every_page_is_accessible(
    fleet: Fleet, address: tuple[str, dict[str, str]], screenshots: Path, tmp_path: Path
) -> None:
    base, headers = address
    faults: list[str] = []
    with chromium(
        tmp_path / "profile", extra_http_headers=headers, viewport={"width": 1200, "height": 900}, color_scheme="light"
    ) as context:
        page: Any = context.pages[0]
        page.on("pageerror", lambda error: faults.append(str(error)))
        # The policy of the pages holds here too: what it forbids is said on the console.
        page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(f"{base}/ui/jobs/live")
        page.evaluate("window.sameDocument = true")
        rounds = page.locator("#rounds .state.aggregated")
        rounds.nth(2).wait_for(timeout=_WAIT_MS)
        before = rounds.count()
        drawn = page.locator("#plot-loss").get_attribute("data-chart")
        rounds.nth(before).wait_for(timeout=_WAIT_MS)
        assert page.evaluate("window.sameDocument") is True  # it was not loaded again
        assert page.locator("#plot-loss").get_attribute("data-chart") != drawn
        assert page.locator(".plot canvas").count() == 5
        assert "Live" in page.locator("#live").inner_text()
        page.screenshot(path=screenshots / "job.png")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for path in _PAGES:
                page.goto(base + path)
                assert serious_findings(page) == [], (path, scheme)
                page.screenshot(path=screenshots / f"{path.strip('/').replace('/', '-')}-{scheme}.png")
        page.goto(f"{base}/ui/")
        page.get_by_label("Name contains").fill("pi-2")
        page.get_by_role("button", name="Show").click()
        assert page.locator("tbody tr").count() == 1
        page.get_by_role("link", name="pi-2").click()
        page.get_by_role("heading", name="Device pi-2").wait_for()
        page.set_viewport_size({"width": 390, "height": 800})
        for path in _PAGES:
            page.goto(base + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        page.screenshot(path=screenshots / "phone.png")
        page.goto(f"{base}/ui/jobs/live")
        page.locator("[data-events]").wait_for(state="attached")
        fleet.covey("job", "stop", "live")
        page.locator("#state .state.stopped").wait_for(timeout=_WAIT_MS)
        page.locator("#live:empty").wait_for(state="attached", timeout=_WAIT_MS)
    assert faults == []


def test_a_page_whose_connection_falls_silent_makes_a_new_one(
    address: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    base, headers = address
    with (
        relay_to(int(base.rpartition(":")[2])) as relay,
        chromium(tmp_path / "profile", extra_http_headers=headers) as context,
    ):
        page: Any = context.pages[0]
        page.clock.install()
        page.goto(f"http://127.0.0.1:{relay.port}/ui/jobs/live")
        rounds = page.locator("#rounds .state.aggregated")
        rounds.nth(1).wait_for(timeout=_WAIT_MS)
        relay.fall_silent()
        relay.speak()
        before, vanished = rounds.count(), relay.vanished_bytes
        wait_for(lambda: relay.vanished_bytes > vanished, "an event that does not arrive")
        for _ in range(10):  # the browser keeps several connections to the server, all of which are silent now
            page.clock.fast_forward(60_000)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: rounds.count() > before + 1, "the page to go on", 25.0)
                break
        assert rounds.count() > before + 1


def test_without_script_a_job_can_be_read_and_without_the_token_nothing(
    fleet: Fleet, address: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    base, headers = address
    wait_for(lambda: fleet.covey("job", "show", "live")["rounds"] >= 1, "a round")
    with chromium(tmp_path / "profile", extra_http_headers=headers, java_script_enabled=False) as context:
        page: Any = context.pages[0]
        page.goto(f"{base}/ui/jobs/live")
        page.get_by_text("Table: loss").click()
        assert page.locator("#table-loss tbody tr").count() >= 2
    with chromium(tmp_path / "stranger") as context:
        context.pages[0].goto(f"{base}/ui/jobs/live")
        assert "/ui/login?next=" in context.pages[0].url
        assert context.pages[0].locator("#rounds").count() == 0


def test_without_script_an_operator_submits_a_job_and_rolls_a_bundle_out(
    fleet: Fleet, address: tuple[str, dict[str, str]], screenshots: Path, tmp_path: Path
) -> None:
    base, headers = address
    folder = fleet.root / "second"
    folder.mkdir()
    rows = folder / "test.jsonl"
    job = write_job(folder, name="second", rounds=2, eval_file=str(rows)).read_text()
    with chromium(tmp_path / "profile", extra_http_headers=headers, java_script_enabled=False) as context:
        page: Any = context.pages[0]
        page.goto(f"{base}/ui/jobs")
        page.get_by_role("link", name="Submit a job").click()
        page.get_by_label("job.toml").fill(f"{job}\nnonsense = 1\n")
        page.get_by_label("Bundle", exact=True).select_option(str(fleet.bundle.path))
        page.get_by_role("button", name="Check the job").click()
        assert "nonsense" in page.get_by_role("alert").inner_text()
        page.get_by_label("job.toml").fill(f"{job}\n")
        page.screenshot(path=screenshots / "submit.png")
        page.get_by_role("button", name="Check the job").click()
        page.get_by_role("heading", name="Submit job second?").wait_for()
        assert str(rows) in page.locator("main").inner_text()
        page.screenshot(path=screenshots / "submit-confirm.png")
        page.get_by_role("button", name="Submit the job").click()
        page.get_by_role("heading", name="Job second").wait_for()
        page.goto(f"{base}/ui/rollouts")
        page.get_by_role("link", name="Start a rollout").click()
        page.get_by_label("What this server has").select_option(f"bundle:{fleet.bundle.path}")
        page.get_by_label("Groups", exact=True).fill("1,100%")
        page.get_by_label("Each group waits for my approval").check()
        page.get_by_role("button", name="See what will happen").click()
        assert "Group 2: 1 device" in page.locator("main").inner_text()
        page.get_by_role("button", name="Change it").click()
        assert page.get_by_label("Each group waits for my approval").is_checked()
        page.get_by_role("button", name="See what will happen").click()
        page.get_by_role("button", name="Start the rollout").click()
        page.get_by_role("heading", name="Rollout 1").wait_for()
        page.get_by_role("link", name="Take back").click()
        page.get_by_role("button", name="Take the rollout back").click()
        page.get_by_role("link", name="1", exact=True).click()
        assert "operator" in page.locator("main").inner_text()
