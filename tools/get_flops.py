"""Command line of poise.cli.get_flops."""

from poise.cli.get_flops import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
