"""Data sets: the sources, the constructed sets and their files."""
