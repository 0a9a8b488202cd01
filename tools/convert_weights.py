"""Command line of poise.cli.convert_weights."""

from poise.cli.convert_weights import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
