"""Command line of poise.cli.search."""

from poise.cli.search import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
