"""An emulated arm64 board: a Debian root made from packages, and QEMU's machine virt that boots it.

``python -m tests.hil.board`` (``make board``) makes the root and boots it; nothing of it is committed, and all of it is
kept under .covey/board by what it is made from.
"""
