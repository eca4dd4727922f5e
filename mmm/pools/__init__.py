"""Pools, which combine the tokens of a sample into one vector."""

from mmm.pools.attentive import AttentivePool
from mmm.pools.base import Pool, pools
from mmm.pools.plain import ClassPool, MeanPool

__all__ = ["AttentivePool", "ClassPool", "MeanPool", "Pool", "pools"]
