"""Command line of poise.cli.analyze."""

from poise.cli.analyze import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
