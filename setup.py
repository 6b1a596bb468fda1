"""Builds the compiled kernel, edge_runtime/native/kernel/perturb.c, where there is a C compiler.

The kernel is a plain shared library that ctypes loads: it knows nothing of Python, so one wheel serves every Python
version. Without a compiler the installation succeeds, and NumPy does the work. With COVEY_KERNEL=numpy in the
environment nothing is compiled, and the wheel is for every platform.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNEL = "edge_runtime.native.perturb"
PURE = os.environ.get("COVEY_KERNEL") == "numpy"


class BuildKernel(build_ext):
    """Gives the library a plain name, and none of what a Python module would need."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path without the tag of a Python version; also called with a name's last part alone."""
        if KERNEL.endswith(fullname):
            return f"{fullname.replace('.', '/')}.so"
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return no symbols: there is no PyInit."""
        return list(ext.export_symbols)


class TagWheel(bdist_wheel):
    """Ties the wheel to the platform, not to a Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return ``py3-none-<platform>``."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[]
    if PURE
    else [
        Extension(
            KERNEL,
            ["edge_runtime/native/kernel/perturb.c"],
            depends=["edge_runtime/native/kernel/perturb.h"],
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            optional=True,
        )
    ],
    cmdclass={} if PURE else {"build_ext": BuildKernel, "bdist_wheel": TagWheel},
)
