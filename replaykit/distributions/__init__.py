"""Distributions: which transitions are drawn, and with which probability."""

from replaykit.distributions.base import Distribution
from replaykit.distributions.latest import Latest
from replaykit.distributions.proportional import Proportional
from replaykit.distributions.rank import Rank
from replaykit.distributions.sum_tree import SumTree
from replaykit.distributions.uniform import Uniform

__all__ = ["Distribution", "Latest", "Proportional", "Rank", "SumTree", "Uniform"]
