"""The package's version and the name it is installed by; on their own, so that any room may name them."""

__version__ = "0.1.0"

DISTRIBUTION = "penstock-ml"
"""What ``pip install`` and ``importlib.metadata`` call this package. On PyPI, ``penstock`` is another project."""


def the_extra(name: str) -> str:
    """Names an extra, and how to install it: for messages about a package that is missing."""
    return f"the extra `{name}`: pip install '{DISTRIBUTION}[{name}]'"
