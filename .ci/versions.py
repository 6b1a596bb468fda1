#!/usr/bin/env python
"""Tests one end of the version ranges in pyproject.toml: the oldest or the newest versions that they allow.

    python .ci/versions.py edge oldest      # what a device and a server need: no torch
    python .ci/versions.py edge oldest --python python3.10    # a device alone: the server needs Python 3.11
    python .ci/versions.py export newest    # the exporter

Run it with the Python of an environment that has everything (make install). It makes a throw-away environment with the
oldest or newest versions of the packages that pyproject.toml names (what these need is the newest that fits), runs the
tests that matter there, and removes it. The bundles of the edge end are exported beforehand, by this environment. Last,
a device of the new environment trains with a server of this one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
TEST_PACKAGES = ["pytest", "pytest-timeout", "hypothesis", "jsonschema", "psutil"]
EXTRAS = {"edge": ["server"], "export": ["server", "export"]}
LEAST_OF_SERVER = (3, 11)
"""Of an older Python than this, the edge end is the device alone."""
NEEDS_SERVER = ["fetch"]
"""Tests of the edge end that have a server of their own, in the same process."""
FLEET_TEST = "tests/fleet/test_oldest_python.py"
TESTS = {
    # Those whose bundles MAKE_BUNDLES makes, and that import nothing of the exporter.
    "edge": [
        "protocol",
        "bundle_folder",
        "continuation",
        "data",
        "fetch",
        "kernel",
        "perturbation",
        "replay",
        "sampling",
        "step",
        "memory_need",
        "least_versions",
    ],
    "export": ["architectures", "borders", "export_bundle", "training_graphs", "weight_table"],
}
MAKE_BUNDLES = """
import sys
from pathlib import Path
from kept_bundles import kept_name
from tiny_exports import TinyExport
root = Path(sys.argv[1])
for kind, options in (("bert", {}), ("llama", {"task": "causal-lm", "levels": (1, 3)})):
    TinyExport(kind, **options).write(root / "models", root / "bundles" / kept_name(kind, options))
"""


def main() -> int:
    """Return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=EXTRAS)
    parser.add_argument("end", choices=RESOLUTIONS)
    parser.add_argument("--python", default=sys.executable, help="whose environment is made (default: this one)")
    args = parser.parse_args()
    extras = extras_of(args.side, args.python)
    with tempfile.TemporaryDirectory(prefix="covey-versions-") as scratch:
        folder = Path(scratch)
        constraints = resolve(f"{args.side}, {args.end}", args.end, extras, args.python, folder)
        python = make_environment(extras, args.python, constraints, folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        named = [name for name in TESTS[args.side] if "server" in extras or name not in NEEDS_SERVER]
        tests = [f"tests/{args.side}/test_{name}.py" for name in named]
        if args.side == "edge":
            support = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
            command = [sys.executable, "-c", MAKE_BUNDLES, str(folder)]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": support}, cwd=ROOT)
            for bundle in sorted((folder / "bundles").iterdir()):
                verify = [python, "-m", "edge_runtime.cli", "bundle", "verify", str(bundle)]
                subprocess.run(verify, check=True, env=environment, cwd=ROOT)
            environment["COVEY_TINY_BUNDLES"] = str(folder)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600", *tests]
        code = subprocess.run(command, check=False, env=environment, cwd=ROOT).returncode
        if code == 0 and args.side == "edge":
            fleet = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600", FLEET_TEST]
            code = subprocess.run(
                fleet, check=False, env=os.environ | {"COVEY_DEVICE_PYTHON": python}, cwd=ROOT
            ).returncode
        return code


def extras_of(side: str, python: str) -> list[str]:
    """Return the extras that a side needs; the edge side of a Python that the server does not run on has none."""
    asked = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"], check=True, capture_output=True, text=True
    )
    major, minor = asked.stdout.split()
    print(f"{side} on Python {major}.{minor} ({python})", flush=True)
    return [] if side == "edge" and (int(major), int(minor)) < LEAST_OF_SERVER else EXTRAS[side]


def resolve(title: str, end: str, extras_wanted: list[str], python: str, folder: Path) -> Path:
    """Write the versions of the packages that pyproject.toml names to a constraints file, and print them."""
    uv = folder / "uv"
    subprocess.run([sys.executable, "-m", "venv", str(uv)], check=True)
    subprocess.run([str(uv / "bin" / "pip"), "install", "--quiet", "uv"], check=True)
    extras = [flag for extra in extras_wanted for flag in ("--extra", extra)]
    command = [str(uv / "bin" / "uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", python]
    command += ["--resolution", RESOLUTIONS[end], *extras, "pyproject.toml"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    named = named_packages(extras_wanted)
    lines = [line for line in found.splitlines() if line.partition("==")[0] in named]
    print(f"{title}: {' '.join(lines)}", flush=True)
    path = folder / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def named_packages(extras: list[str]) -> set[str]:
    """Return the packages that pyproject.toml names for a device, and for some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in wanted}


def make_environment(extras: list[str], python: str, constraints: Path, folder: Path) -> str:
    """Make an environment with these versions, and return its Python. pip installs, so that its settings hold."""
    made = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    wanted = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    command = [made, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), wanted, *TEST_PACKAGES]
    subprocess.run(command, check=True)
    return made


if __name__ == "__main__":
    sys.exit(main())
