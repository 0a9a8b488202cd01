"""Command line of poise.cli.train."""

from poise.cli.train import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
