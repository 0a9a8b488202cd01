"""requirements.txt and docs/requirements.txt pin each package once for every Python."""

import json
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def pins(python, file="requirements.txt"):
    """Return the lines of a file for a Python. pip evaluates their markers for its own."""
    lines = (ROOT / file).read_text().splitlines()
    written = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [one for one in written if applies(one, python)]


def applies(requirement, python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pip(*arguments, timeout=900):
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
    ]
    options = ["--disable-pip-version-check", "--only-binary", ":all:", "--retries", "1"]
    return subprocess.run(
        [*command, *options, *arguments], text=True, capture_output=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def package_index():
    try:
        found = pip("yacs==0.1.8", timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        found = False
    if not found:
        pytest.skip(
            "no package index can be reached: whether requirements.txt resolves was not tested"
        )


@pytest.mark.parametrize("python", PYTHONS)
def test_requirements_pin_each_package_once(python):
    names = [canonicalize_name(pin.name) for pin in pins(python)]
    assert len(names) == len(set(names)) >= 20


@pytest.mark.parametrize("python", PYTHONS)
def test_docs_requirements_pin_each_package_once(python):
    wanted = pins(python, "docs/requirements.txt")
    names = [canonicalize_name(pin.name) for pin in wanted]
    assert len(names) == len(set(names)) >= 4
    assert all(str(pin.specifier).startswith("==") for pin in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["requirements.txt", "docs/requirements.txt"])
@pytest.mark.parametrize("python", PYTHONS)
def test_requirements_resolve_for_each_python(python, file, package_index, tmp_path):
    """Every pin has a release for it, and each release accepts the pinned versions of the others.

    pip gives --python-version to the choice of files, not to markers, so packages that are not
    pinned (such as torch's own requirements) are not looked for.
    """
    wanted = pins(python, file)
    texts = [f"{pin.name}{pin.specifier}" for pin in wanted]
    target = ["--python-version", python, "--target", str(tmp_path / "nowhere")]
    done = pip("--quiet", "--report", str(tmp_path / "report.json"), *target, *texts)
    assert done.returncode == 0, done.stderr
    found = [
        entry["metadata"] for entry in json.loads((tmp_path / "report.json").read_text())["install"]
    ]
    versions = {canonicalize_name(entry["name"]): entry["version"] for entry in found}
    assert len(versions) == len(wanted)
    for entry in found:
        for other in map(Requirement, entry.get("requires_dist", [])):
            version = versions.get(canonicalize_name(other.name))
            if version and applies(other, python):
                assert other.specifier.contains(version, prereleases=True), (
                    f"{entry['name']} needs {other}"
                )
