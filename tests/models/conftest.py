"""Fixtures of the tests of models and weight files."""

import logging

import pytest


@pytest.fixture
def messages(caplog):
    """Capture what poise logs, from INFO on."""
    caplog.set_level(logging.INFO, logger="poise")
    return caplog
