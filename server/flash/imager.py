"""Writes the manifest with which Raspberry Pi Imager's own window can flash a card image that Covey has made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.hashing import file_sha256

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence
    from pathlib import Path

    from server.flash.check import CardReport

_BOARDS = ("pi3-64bit", "pi4-64bit", "pi5-64bit")


def write_manifest(path: Path, cards: Sequence[tuple[Path, CardReport]], today: dt.date) -> None:
    """Write a manifest of card images on this machine.

    Imager offers none of its own settings for them (``init_format`` is ``none``): a card has its settings already.

    Args:
        path: the file, whose name should end with ``.rpi-imager-manifest``.
        cards: images, and what is in them.
        today: the day that Imager shows.
    """
    entries = [
        {
            "name": f"Covey {report.device}",
            "description": f"{report.system}, Covey {report.covey_version or __version__}, for device {report.device}",
            "url": image.absolute().as_uri(),
            "icon": "",
            "extract_size": image.stat().st_size,
            "extract_sha256": file_sha256(image),
            "image_download_size": image.stat().st_size,
            "release_date": today.isoformat(),
            "init_format": "none",
            "devices": list(_BOARDS),
        }
        for image, report in cards
    ]
    manifest = {
        "imager": {"latest_version": "2.0.0", "url": "https://www.raspberrypi.com/software/"},
        "os_list": entries,
    }
    write_atomically(path, (json.dumps(manifest, indent=2) + "\n").encode())
