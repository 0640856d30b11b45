"""Benchmarks: each measures a path of ours and, in the same run, the floor or peer beside it."""
