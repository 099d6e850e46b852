"""The whole cluster in one thread, on a virtual clock, with seeded faults; the protocol's machines as they are.

``python -m tests.simulation --seed 7 --trace`` replays a seed.
"""
