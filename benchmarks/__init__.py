"""Benchmarks: ours and a peer on the same rows in one run. ``python -m benchmarks`` lists them.

They are not part of the package, and no test of it.
"""
