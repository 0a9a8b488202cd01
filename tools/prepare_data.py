"""Command line of poise.cli.prepare_data."""

from poise.cli.prepare_data import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
