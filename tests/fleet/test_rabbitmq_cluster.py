"""Devices spread over three nodes of RabbitMQ: nodes are killed with -9 in mid-round, and nothing is lost."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, free_port, write_job
from rabbitmq_cluster import has_rabbitmq, rabbitmq_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from rabbitmq_cluster import RabbitCluster

    from edge_runtime.bundle.folder import Bundle

KILLS = int(os.environ.get("COVEY_CLUSTER_KILLS", "3"))
NAMES = [f"d{number:02}" for number in range(12)]
ROUNDS = 4 + 8 * KILLS
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not has_rabbitmq(), reason="RabbitMQ is not installed: apt-get install rabbitmq-server"),
]


class Spread(Fleet):
    """A server and twelve devices that know all nodes, and a job that needs every device in every round."""

    def __init__(self, root: Path, bundle: Bundle, cluster: RabbitCluster) -> None:
        root.mkdir()
        super().__init__(root, bundle, free_port(), external=True)
        rules: dict[str, Any] = {"min_devices": len(NAMES), "min_reports": len(NAMES), "max_attempts": 1000}
        job = write_job(root, rounds=ROUNDS, steps=4, deadline_s=120.0, **rules)
        self.server = self.serve(job, "--broker", cluster.url, "--fleet", root.name)
        for seed, name in enumerate(NAMES):
            self.device(name, seed, broker=cluster.url, fleet=root.name)

    def adapter(self) -> str:
        """Wait for the end; return the adapter's hash, which every device has, after rounds of all devices."""
        sha256 = str(self.server.result(900.0)["adapter_sha256"])
        ends = [device.result(900.0)["adapter_sha256"] for device in self.processes[1:]]
        assert ends == [sha256] * len(NAMES)
        closed = [event for event in self.server.events() if event.get("event") == "round_closed"]
        assert [event["round"] for event in closed] == list(range(ROUNDS)), "no round is lost, and none counts twice"
        return sha256


def test_killed_nodes_cost_no_round_and_no_bit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    with rabbitmq_cluster(tmp_path / "cluster") as cluster:
        quiet = Spread(tmp_path / "quiet", tiny_bundle, cluster)
        try:
            expected = quiet.adapter()
        finally:
            quiet.stop()

        killed = Spread(tmp_path / "killed", tiny_bundle, cluster)
        try:
            killed.server.wait_event("round_opened")
            spread = [node.connections() for node in cluster.nodes]
            assert sum(spread) >= len(NAMES), "every device is connected"
            assert min(spread) > 0, f"devices are on every node: {spread}"
            for number in range(KILLS):
                killed.server.wait_event("round_opened", 1 + 4 * number)
                time.sleep(rng.uniform(0, 1.0))  # not to wait for something: to kill at any moment of a round
                node = rng.choice([node for node in cluster.nodes if node.connections()])
                assert killed.server.popen.poll() is None, f"the job was over before kill {number} (seed {seed})"
                node.kill()
                node.start()
                node.wait_until_up()
            found = killed.adapter()
            lost = sum(p.stderr.read_text().count("connection to the broker lost") for p in killed.processes)
            assert lost >= KILLS, "each kill met a member"
        finally:
            killed.stop()
    assert found == expected, f"seed {seed}"
