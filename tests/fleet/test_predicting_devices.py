"""``covey-edge run`` answers texts while it trains, and loses no correction that it has taken, however it ends."""

from __future__ import annotations

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fleets import Fleet, free_port, wait_for, write_job
from predicting import ask, leave_model

from edge_runtime.bundle.folder import Bundle

KILLS = 4


def answers(port: int) -> bool:
    try:
        return ask(port, "/healthz", None, "GET")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_correction_that_was_answered_survives_kill_9(tmp_path: Path, tiny_bundle: Bundle) -> None:
    leave_model(tmp_path / "covey-state", tiny_bundle)
    (tmp_path / "rows.jsonl").write_text('{"text": "a film", "label": "good"}\n')
    port, broker = free_port(), free_port()  # nobody listens on the second: predictions need no fleet
    (tmp_path / "edge.toml").write_text(
        f'name = "pi"\nbroker = "mqtt://127.0.0.1:{broker}"\nthreads = 1\nconnect_timeout_s = 600\n'
        f'[data]\npath = "rows.jsonl"\n[predict]\nlisten = "127.0.0.1:{port}"\nfeedback_per_minute = 100000\n'
    )
    command = [sys.executable, "-m", "edge_runtime.cli", "run", "--config", str(tmp_path / "edge.toml")]
    taken: list[str] = []
    for run in range(KILLS):
        with (tmp_path / f"{run}.err").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(port), "endpoint")

            def send(process: subprocess.Popen[bytes] = process, run: int = run) -> None:
                for number in range(10_000):
                    text = f"film {run} {number} " + "long " * 200
                    try:
                        if ask(port, "/feedback", {"text": text, "label": "good"})[0] != 200:
                            return
                    except (OSError, ValueError, http.client.HTTPException):
                        return
                    taken.append(text)
                    if number == 5:
                        threading.Timer(random.Random(run).uniform(0, 0.1), process.kill).start()

            sender = threading.Thread(target=send)
            sender.start()
            sender.join(300)
            assert not sender.is_alive()
        finally:
            process.kill()
        assert process.wait(60) == -signal.SIGKILL
        rows = [json.loads(line) for line in (tmp_path / "corrections.jsonl").read_text().splitlines()]  # none is half
        assert set(taken) <= {row["text"] for row in rows}
        assert len(rows) <= len(taken) + run + 1  # besides, at most one a run that was written and not answered
    assert len(taken) >= 5 * KILLS


def test_predictions_go_on_during_training_and_the_fleet_keeps_its_bits(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    port = free_port()
    try:
        server = fleet.serve(write_job(tmp_path, rounds=4, steps=8, min_reports=2))
        plain = fleet.device("a", 1)
        asked = fleet.device("b", 2, predict={"listen": f"127.0.0.1:{port}", "texts_per_minute": 1_000_000})
        seen: list[dict[str, Any]] = []
        while asked.popen.poll() is None:
            try:
                status, answer, _ = ask(port, "/predict", {"text": ["a good film", "a bad film"]})
            except (OSError, ValueError, http.client.HTTPException):
                continue  # not yet, or not any more
            assert status == 200 or answer["error"] == "this device has no adapter yet", answer
            seen += [answer] if status == 200 else []
        ends = [process.result() for process in (server, plain, asked)]
    finally:
        fleet.stop()
    hashes = {end["adapter_sha256"] for end in ends}
    assert len(hashes) == 1, asked.stderr.read_text()
    versions = list(dict.fromkeys(answer["adapter_sha256"] for answer in seen))
    assert len(versions) > 1, "no prediction between two rounds"
    assert "failed" not in asked.stderr.read_text()
    labels = {tuple(p["label"] for p in answer["predictions"]) for answer in seen}
    assert labels <= {(a, b) for a in ("good", "bad") for b in ("good", "bad")}
