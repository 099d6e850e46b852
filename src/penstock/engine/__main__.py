"""``python -m penstock.engine``: a role as a process; see ``role``."""

from penstock.engine.role import main

main()
