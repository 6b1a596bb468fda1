"""A folder as NVIDIA's Linux_for_Tegra is after apply_binaries.sh, with what Covey looks at, and nothing that boots.

The names are those of NVIDIA's public packages: etc/nv_tegra_release, nv-oem-config.target, l4t_create_default_user.sh.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

RELEASES = {
    "3.10": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n",
    "3.12": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Mon Aug 25 2025\n",
}
USER_TOOL = """\
#!/bin/bash
# Stands in for NVIDIA's script: it keeps its arguments, makes the user, and takes the wizard out.
set -e
here=$(cd "$(dirname "$0")/.." && pwd)
printf '%s\\n' "$@" >"$here/arguments"
[ -e "$here/fail" ] && { echo "ERROR: no chroot here" >&2; exit 1; }
echo "Creating: Username - $2, Password - $4"
echo "$2:x:1000:1000::/home/$2:/bin/bash" >>"$here/rootfs/etc/passwd"
mkdir -p "$here/rootfs/home/$2"
[ -e "$here/keep-wizard" ] || rm -f "$here/rootfs/etc/systemd/system/default.target"
"""


def write_l4t(folder: Path, python: str = "3.10", *, users: bool = False, wizard: bool = True) -> Path:
    """Write a Linux_for_Tegra and return its path."""
    rootfs = folder / "Linux_for_Tegra/rootfs"
    for path in ("usr/bin", "usr/lib", "etc/systemd/system", "opt", "var/lib", "home"):
        (rootfs / path).mkdir(parents=True)
    (rootfs / f"usr/bin/python{python}").write_text("an interpreter\n")
    (rootfs / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n"
        + ("nvidia:x:1000:1000::/home/nvidia:/bin/bash\n" if users else "")
    )
    (rootfs / "etc/nv_tegra_release").write_text(RELEASES[python])
    (rootfs / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 tegra-ubuntu\n")
    if wizard:
        (rootfs / "etc/systemd/system/default.target").symlink_to("/lib/systemd/system/nv-oem-config.target")
    tool = folder / "Linux_for_Tegra/tools/l4t_create_default_user.sh"
    tool.parent.mkdir()
    tool.write_text(USER_TOOL)
    return folder / "Linux_for_Tegra"


def write_gpu_wheel(folder: Path, python: str) -> Path:
    """Write a wheel named as NVIDIA's for ONNX Runtime with CUDA, which has next to nothing in it; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = f"cp{python.replace('.', '')}"
    path = folder / f"onnxruntime_gpu-1.23.0-{tag}-{tag}-linux_aarch64.whl"
    info = "onnxruntime_gpu-1.23.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("onnxruntime/__init__.py", '__version__ = "1.23.0"\n')
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.23.0\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}-{tag}-linux_aarch64\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def write_index(folder: Path, wheels: list[Path]) -> Path:
    """Write a package index (PEP 503) of wheels into a folder that a web server can serve; return the folder."""
    for wheel in wheels:
        name = wheel.name.split("-")[0].replace("_", "-").lower()
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / wheel.name).write_bytes(wheel.read_bytes())
        links = "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(place.glob("*.whl")))
        (place / "index.html").write_text(f"<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n")
    return folder


def tree_of(folder: Path) -> dict[str, Any]:
    """Return what is below a folder: each path with its bytes, its link's target, or None for a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found
