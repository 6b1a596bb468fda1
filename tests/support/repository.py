"""Where the repository is: tests that read its files or start its scripts begin here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
