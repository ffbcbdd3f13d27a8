"""Where a tensor of parameters meets data, and its per-example gradients there.

One file for each family of operations; what no rule serves, `local` does.
"""

from tangency.empirical.sites import affine, convolution, elementwise, lookup
from tangency.empirical.sites.local import local_site
from tangency.empirical.sites.registry import Site, ruled_site

__all__ = ["Site", "affine", "convolution", "elementwise", "local_site", "lookup", "ruled_site"]
