"""The program of a worker process: `python -m benchmarks.workers.process KIND SETTINGS`; see harness.measure.Worker.

It makes the routines of its kind from the settings (JSON), runs each once, and writes the memory that it had before
these runs as a line of JSON. From then on it reads the name of a routine from each line of its input, runs it, and
writes time and memory as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.harness.process_memory import own_memory_mb
from benchmarks.workers import backprop, continuation, forward_only, frozen_fronts, products, rivals
from benchmarks.workers.routines import OwnTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workers.routines import Routines, Settings

KINDS: dict[str, Callable[[Settings], Routines]] = {
    "step": forward_only.step,
    "train_round": forward_only.train_round,
    "inference": forward_only.inference,
    "inference_in_memory": forward_only.inference_in_memory,
    "blocks_onnxruntime": forward_only.blocks_onnxruntime,
    "blocks_executorch": forward_only.blocks_executorch,
    "load_executorch": forward_only.load_executorch,
    "frozen_front": frozen_fronts.frozen_front,
    "frozen_training": frozen_fronts.frozen_training,
    "frozen_gradients": frozen_fronts.frozen_gradients,
    "frozen_steps": frozen_fronts.frozen_steps,
    "frozen_libraries": frozen_fronts.frozen_libraries,
    "gradients": backprop.gradients,
    "micro_batches": backprop.micro_batches,
    "levels": backprop.levels,
    "all_levels": backprop.all_levels,
    "libraries": backprop.libraries,
    "continuation": continuation.with_cache,
    "continuation_uncached": continuation.without_cache,
    "matmuls": products.matmuls,
    "torch_mezo": rivals.torch_mezo,
    "torch_lora": rivals.torch_lora,
}


def main() -> None:
    """Make the routines and run each once, then serve requests until the input ends."""
    routines = KINDS[sys.argv[1]](json.loads(sys.argv[2]))
    made = own_memory_mb()
    for routine in routines.values():
        routine()
    print(json.dumps(made), flush=True)
    for line in sys.stdin:
        started, cpu_started = time.perf_counter(), time.process_time()
        result = routines[line.strip()]()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        if isinstance(result, OwnTime):
            seconds = result.seconds
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, **own_memory_mb()}), flush=True)


if __name__ == "__main__":
    main()
