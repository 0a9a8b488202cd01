"""Command line of poise.cli.export."""

from poise.cli.export import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
