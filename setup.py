"""Builds the one compiled part of Poise, poise.nms._nms; everything else is declared in pyproject.toml.

    pip install -e . --no-build-isolation      # or
    python setup.py build_ext --inplace

Neither fails without a compiler: the extension is optional, and poise.nms then computes the same with NumPy.
"""
import os
import sys

from setuptools import Extension, setup


def extensions() -> list:
    """The Cython extension, or nothing where Cython is absent (only possible with --no-build-isolation)."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("poise: Cython is not installed, so OKS-NMS is not compiled and NumPy is used", file=sys.stderr)
        return []
    if os.name == "nt":
        flags = ["/O2"]
    else:
        # No -ffast-math and no fused multiply-add (which gcc uses unasked on ARM): both round differently from NumPy,
        # and a box whose overlap is exactly the threshold would be kept by one and not by the other
        flags = ["-O3", "-ffp-contract=off"]
    kernels = Extension("poise.nms._nms", ["lib/poise/nms/_nms.pyx"], extra_compile_args=flags)
    built = cythonize([kernels], language_level=3)
    for extension in built:
        extension.optional = True  # set here, because cythonize makes new objects and forgets it
    return built


setup(ext_modules=extensions())
