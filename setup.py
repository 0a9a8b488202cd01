"""Builds the compiled parts of Poise, poise.evaluation.nms._nms, poise.codecs._flip,
poise.evaluation._matching, poise.structures._warp and _jpeg; the rest is declared in
pyproject.toml.

    pip install -e . --no-build-isolation      # or
    python setup.py build_ext --inplace

Neither fails without a compiler: the extensions are optional. poise.evaluation.nms, poise.codecs
and poise.evaluation then compute the same with NumPy, and poise.datasets decodes whole images and
cuts crops with OpenCV. _jpeg is built where libjpeg-turbo's header is found (Debian: libjpeg-dev).
"""

import os
import shutil
import subprocess
import sys
import tempfile

from setuptools import Extension, setup


def extensions() -> list:
    """The Cython extensions, or nothing where Cython is absent (only possible with
    --no-build-isolation).
    """
    try:
        from Cython.Build import cythonize
    except ImportError:
        print(
            "poise: Cython is not installed, so nothing is compiled and NumPy is used",
            file=sys.stderr,
        )
        return []
    flags = ["/O2"]
    if os.name != "nt":
        # No -ffast-math and no fused multiply-add (gcc's default on ARM): both round
        # differently from NumPy, and a box whose overlap is exactly the threshold would be kept by
        # one and not by the other
        flags = ["-O3", "-ffp-contract=off"]
    wanted = [
        Extension(
            "poise.evaluation.nms._nms",
            ["lib/poise/evaluation/nms/_nms.pyx"],
            extra_compile_args=flags,
        ),
        Extension("poise.codecs._flip", ["lib/poise/codecs/_flip.pyx"], extra_compile_args=flags),
        Extension(
            "poise.evaluation._matching",
            ["lib/poise/evaluation/_matching.pyx"],
            extra_compile_args=flags,
        ),
        Extension(
            "poise.structures._warp", ["lib/poise/structures/_warp.pyx"], extra_compile_args=flags
        ),
    ]
    if has_libjpeg_turbo():
        wanted.append(
            Extension(
                "poise.io._jpeg",
                ["lib/poise/io/_jpeg.pyx"],
                extra_compile_args=flags,
                libraries=["jpeg"],
            )
        )
    built = cythonize(wanted, language_level=3)
    for extension in built:
        extension.optional = True  # set here, because cythonize makes new objects and forgets it
    return built


def has_libjpeg_turbo() -> bool:
    """Whether a program with libjpeg-turbo's own functions compiles and links, tried quietly:
    most machines lack it, and it is no fault.
    """
    compiler = os.environ.get("CC", "cc").split()
    if not shutil.which(compiler[0]):
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "try.c")
        with open(source, "w") as file:
            file.write(
                "#include <stdio.h>\n#include <jpeglib.h>\n#ifndef"
                " LIBJPEG_TURBO_VERSION\n#error\n#endif\nint main(void) { return"
                " jpeg_skip_scanlines == 0 || JCS_EXT_BGR == 0; }\n"
            )
        tried = subprocess.run(
            [*compiler, source, "-o", os.path.join(folder, "try"), "-ljpeg"],
            capture_output=True,
            check=False,
        )
    return tried.returncode == 0


setup(ext_modules=extensions())
