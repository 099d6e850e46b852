"""``penstock dash``: a live page for those who run the system.

``folder`` and ``remote`` look at a run, ``servers`` at prediction servers; what they find goes to a ``board``,
from which each reader gets what is new to it; ``app`` serves that, and ``page`` is the document.
"""
