"""All hot loops: every ``@njit`` function of ours, plain arrays in and plain arrays out.

Kernels know nothing of files, columns or models. They release the GIL and are cached on disk
(``compile.py``). Each has a tiny example in its docstring and a NumPy oracle in ``tests/kernels``.
"""
