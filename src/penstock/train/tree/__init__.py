"""Tree aggregate: synchronous training over partitions, in threads or in processes of this machine."""

from penstock.train.tree.fit import TreeAggregate, fit_tree

__all__ = ["TreeAggregate", "fit_tree"]
