"""Command lines: parse arguments, call one function, print."""
