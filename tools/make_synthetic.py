"""Command line of poise.cli.make_synthetic."""

from poise.cli.make_synthetic import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
