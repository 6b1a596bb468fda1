"""The load of a real fleet; see speed/fleet.py, which this runs: ``python -m benchmarks.fleet``."""

from __future__ import annotations

from benchmarks.speed.fleet import main

if __name__ == "__main__":
    main()
