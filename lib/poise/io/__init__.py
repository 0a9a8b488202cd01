"""Bytes in and out: bounded reads, atomic writes, archives, downloads, images and video."""
