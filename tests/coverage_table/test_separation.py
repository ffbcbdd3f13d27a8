from __future__ import annotations

import torch
from separation import separation


def test_means_ranks_and_neighbours_of_four_vectors() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 70.0, 180.0], dtype=torch.float64))
    vectors = torch.tensor([[1.0], [2.0], [3.0], [0.5]]) * torch.stack(
        [angles.cos(), angles.sin()], 1
    )
    found = separation("angles", 1.0, vectors @ vectors.mT, torch.tensor([0, 0, 1, 1]))

    def cos(*degrees: float) -> float:
        return float(torch.deg2rad(torch.tensor(degrees, dtype=torch.float64)).cos().mean())

    assert abs(found.within - cos(60, 110)) < 1e-6
    assert abs(found.between - cos(70, 180, 10, 120)) < 1e-6
    # 60 degrees is nearer than 70, 180 and 120; 110 than 180 and 120: 5 of 8 pairs.
    assert found.ordered == 5 / 8
    # The first vector's neighbour is the second; those of the second and third are each other;
    # the last one's is the third.
    assert found.neighbours == 2 / 4
