"""Command line of poise.cli.browse."""

from poise.cli.browse import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
