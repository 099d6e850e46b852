"""The parameter server's protocol, without I/O: coordinator, server and client as state machines.

Messages in, messages out; time and randomness are passed in. ``transport`` carries messages and ``engine`` runs
the machines in processes; the simulator in ``tests/simulation`` runs the same machines on a virtual clock.
"""

from penstock.parameter_server.consistency import ASP, BSP, SSP, Consistency, parse_consistency

__all__ = ["ASP", "BSP", "SSP", "Consistency", "parse_consistency"]
