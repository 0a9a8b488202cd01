"""Command line of poise.cli.test."""

from poise.cli.test import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
