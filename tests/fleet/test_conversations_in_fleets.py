"""A fleet learns from rows of messages: devices train on them, and the server evaluates on conversations held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from chats import TURNS
from fleets import Fleet, free_port, write_job
from tiny_exports import TinyExport
from tiny_models import completions, make_model

if TYPE_CHECKING:
    from pathlib import Path


def talks(n_rows: int, seed: int) -> list[dict[str, Any]]:
    """Return conversations that a model can learn from."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in completions(n_rows, seed)
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fleet_trains_on_conversations(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "models" / "llama")
    (folder / "chat_template.jinja").write_text(TURNS, encoding="utf-8")
    asked = TinyExport("llama", "causal-lm", splits=(1,), max_tokens=128)
    fleet = Fleet(tmp_path, asked.write(tmp_path / "models", tmp_path / "bundle"), free_port(), external=False)
    try:
        server = fleet.serve(write_job(tmp_path, rounds=2, min_devices=2, rows_of=talks))
        devices = [fleet.device(f"device-{index}", index, rows_of=talks) for index in range(2)]
        result = server.result()
        assert [device.result()["adapter_sha256"] for device in devices] == [result["adapter_sha256"]] * 2
    finally:
        fleet.stop()
    assert (result["rounds"], result["reports"]) == (2, 4)
    losses = [event["loss"] for event in server.events() if event["event"] == "evaluated"]
    assert len(set(losses)) == 3
