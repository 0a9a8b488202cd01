"""Mark every test of this folder as `security`; processes over gloo and mounts as fixtures."""

from pathlib import Path

import pytest
from support.gloo_processes import forks, together
from support.tool_processes import own_mounts

__all__ = ["forks", "own_mounts", "together"]

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.security)
