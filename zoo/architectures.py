"""Everything in the coverage table, section by section."""

from __future__ import annotations

import image_layers
import libraries
import networks
import sequence_layers
from architecture import Architecture

__all__ = ["SECTIONS", "architecture_at"]

SECTIONS: dict[str, list[Architecture]] = {
    "torchvision": libraries.TORCHVISION,
    "timm": libraries.TIMM,
    "Hugging Face transformers": libraries.TRANSFORMERS,
    "Written by hand": networks.HAND_WRITTEN,
    "Convolutions": image_layers.CONVOLUTIONS,
    "Pooling": image_layers.POOLINGS,
    "Linear maps over positions": image_layers.POSITIONS,
    "Normalisation and dropout": [*image_layers.NORMALISATIONS, *sequence_layers.VECTORS],
    "Residual sums, gates and products": image_layers.GATES_AND_RESIDUALS,
    "Recurrence": sequence_layers.RECURRENCE,
    "Attention": sequence_layers.ATTENTION,
    "Embeddings, several inputs and outputs": sequence_layers.EMBEDDINGS_AND_INPUTS,
    "Graphs": sequence_layers.GRAPHS,
    "Other operations": sequence_layers.SAMPLED,
}


def architecture_at(section: str, index: int) -> Architecture:
    """`SECTIONS[section][index]`, for processes that cannot be handed an architecture."""
    return SECTIONS[section][index]
