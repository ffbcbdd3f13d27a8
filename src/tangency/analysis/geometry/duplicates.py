"""Near-duplicates: pairs and groups, and the eigenvalues that they force to be small.

For two examples at the distance d in feature space, the Rayleigh quotient of e_i - e_j is d^2 / 2:
the smallest eigenvalue of the kernel matrix is at most that. If their targets differ, a function
through both has a squared norm of at least |y_i - y_j|^2 / d^2. A group of m examples takes part
in m - 1 such directions: of all groups together, the sum of that many smallest eigenvalues is at
most the scatter within the groups (Ky Fan).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from tangency.analysis.geometry.distances import squared_distances

__all__ = ["NearDuplicates", "near_duplicates"]


@dataclass(frozen=True, eq=False, repr=False)
class NearDuplicates:
    """Examples that the kernel hardly tells apart.

    Attributes:
        threshold: normalised distance up to which two examples are near-duplicates.
        pairs: (p, 2) indices of near-duplicates, the closest first.
        distances: (p,) their distances in feature space, not normalised.
        groups: indices of the examples of each group of near-duplicates, the largest group first;
            groups are joined by single linkage, so that they are chains of near-duplicates.
        scatter: sum over the groups of the squared distances from the group's mean: at least the
            sum of the `collapsed` smallest eigenvalues.
        collapsed: how many directions lie within groups: one less than the members of each.
    """

    threshold: float
    pairs: Tensor
    distances: Tensor
    groups: tuple[Tensor, ...]
    scatter: float
    collapsed: int

    @property
    def eigenvalue_bounds(self) -> Tensor:
        """(p,) d^2 / 2: an upper bound on the smallest eigenvalue by each pair."""
        return self.distances.square() / 2

    def norm_bounds(self, y: Tensor) -> Tensor:
        """(p,) |y_i - y_j|^2 / d^2: a lower bound on the squared RKHS norm by each pair.

        Infinite where targets differ at distance zero. `y` is (n,) or (n, out).
        """
        values = y.reshape(len(y), -1).to(self.distances)
        gap = (values[self.pairs[:, 0]] - values[self.pairs[:, 1]]).square().sum(dim=1)
        return torch.where(gap > 0, gap / self.distances.square(), 0.0)

    def to_dict(self) -> dict[str, object]:
        """All attributes by name."""
        return {
            "threshold": self.threshold,
            "pairs": self.pairs,
            "distances": self.distances,
            "groups": self.groups,
            "scatter": self.scatter,
            "collapsed": self.collapsed,
            "eigenvalue_bounds": self.eigenvalue_bounds,
        }

    def __repr__(self) -> str:
        sizes = [len(group) for group in self.groups]
        largest = f", the largest of {max(sizes)}" if sizes else ""
        return (
            f"NearDuplicates({len(self.pairs)} pairs within {self.threshold:g}, "
            f"{len(sizes)} groups{largest})"
        )


def near_duplicates(matrix: Tensor, threshold: float) -> NearDuplicates:
    """Pairs and groups of a kernel matrix (n, n) with a normalised distance up to `threshold`."""
    normalized = squared_distances(matrix, normalized=True).sqrt()
    plain = squared_distances(matrix, normalized=False).sqrt()
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    close = normalized[rows, columns] <= threshold
    pairs = torch.stack([rows[close], columns[close]], dim=1)
    distances = plain[pairs[:, 0], pairs[:, 1]]
    order = distances.argsort(stable=True)
    groups = _groups(normalized, threshold)
    return NearDuplicates(
        threshold=threshold,
        pairs=pairs[order],
        distances=distances[order],
        groups=groups,
        scatter=sum(_scatter(plain, group) for group in groups),
        collapsed=sum(len(group) - 1 for group in groups),
    )


def _groups(distances: Tensor, threshold: float) -> tuple[Tensor, ...]:
    if len(distances) < 2:
        return ()
    tree = linkage(squareform(distances.cpu().numpy(), checks=False), method="single")
    label = torch.from_numpy(fcluster(tree, threshold, criterion="distance")).to(torch.int64)
    order = label.argsort(stable=True)
    parts = order.split(torch.bincount(label)[1:].tolist())
    found = [part.to(distances.device) for part in parts if len(part) > 1]
    return tuple(sorted(found, key=lambda part: (-len(part), int(part[0]))))


def _scatter(distances: Tensor, group: Tensor) -> float:
    """sum_i |phi_i - mean|^2 = sum over pairs of d^2 / m."""
    return float(distances[group][:, group].square().sum()) / (2 * len(group))
