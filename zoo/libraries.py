"""Architectures as torchvision, timm and Hugging Face transformers build them, with no edit.

Sizes are small: width does not matter to the limit, and the number of positions only to the time.
"""

from __future__ import annotations

from typing import Any

import torch
from architecture import Architecture, images
from torch import Tensor, nn
from torchvision_operators import declare_missing_operators

from tangency import Init

declare_missing_operators()

import timm  # noqa: E402
import transformers  # noqa: E402
from torchvision import models  # noqa: E402

__all__ = ["TIMM", "TORCHVISION", "TRANSFORMERS"]

TORCHVISION = [
    Architecture("VGG-11", "torchvision.models.vgg11", models.vgg11, images()),
    Architecture("VGG-11 with BatchNorm", "torchvision.models.vgg11_bn", models.vgg11_bn, images()),
    Architecture("AlexNet", "torchvision.models.alexnet", models.alexnet, images(64)),
    Architecture("ResNet-18", "torchvision.models.resnet18", models.resnet18, images()),
    Architecture("ResNet-50", "torchvision.models.resnet50", models.resnet50, images()),
    Architecture("MobileNetV2", "torchvision.models.mobilenet_v2", models.mobilenet_v2, images()),
    Architecture(
        "MobileNetV3 small",
        "torchvision.models.mobilenet_v3_small",
        models.mobilenet_v3_small,
        images(),
    ),
    Architecture(
        "EfficientNet-B0",
        "torchvision.models.efficientnet_b0",
        models.efficientnet_b0,
        images(),
    ),
    Architecture("DenseNet-121", "torchvision.models.densenet121", models.densenet121, images()),
    Architecture("GoogLeNet", "torchvision.models.googlenet", lambda: _googlenet(), images()),
    Architecture(
        "SqueezeNet 1.1", "torchvision.models.squeezenet1_1", models.squeezenet1_1, images()
    ),
    Architecture("ConvNeXt-T", "torchvision.models.convnext_tiny", models.convnext_tiny, images()),
    # Its head starts at zero, which would leave nothing to see: the scales are prescribed.
    Architecture(
        "ViT-B/16",
        "torchvision.models.vit_b_16(image_size=32)",
        lambda: models.vit_b_16(image_size=32),
        images(),
        options={"init": Init.lecun()},
    ),
    # With the default number of samples this row alone would take CI minutes.
    Architecture(
        "Swin-T",
        "torchvision.models.swin_t, samples=128",
        models.swin_t,
        images(),
        options={"samples": 128},
    ),
]


def _googlenet() -> nn.Module:
    return models.googlenet(aux_logits=False, init_weights=False)


def _timm(name: str, model: str, size: int = 32, **arguments: Any) -> Architecture:
    written = "".join(f", {key}={value}" for key, value in arguments.items())
    return Architecture(
        name,
        f'timm.create_model("{model}"{written})',
        lambda: timm.create_model(model, **arguments),
        images(size),
    )


# Branches that start at zero (the last scale of a ResNet block, ConvNeXt's layer scale) are given
# their other documented start: they would drop out of the kernel.
TIMM = [
    _timm("ResNetV2-18", "resnetv2_18", zero_init_last=False),
    _timm("ResNetV2-50", "resnetv2_50", zero_init_last=False),
    _timm("ResNetV2-50-D, GroupNorm", "resnetv2_50d_gn", zero_init_last=False),
    _timm("ResNetV2-50x1 BiT", "resnetv2_50x1_bit", zero_init_last=False),
    _timm("ConvNeXt-atto", "convnext_atto", ls_init_value=0.5),
    _timm("ConvNeXt-tiny", "convnext_tiny", ls_init_value=0.5),
    _timm("ConvNeXt V2-atto", "convnextv2_atto"),
    _timm("MLP-Mixer S/32", "mixer_s32_224", 64, img_size=64),
    _timm("ViT-tiny", "vit_tiny_patch16_224", img_size=32),
]


def _bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
        )
    )


def _gpt2() -> nn.Module:
    return transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, use_cache=False
        )
    )


def _llama() -> nn.Module:
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
            use_cache=False,
        )
    )


def _tokens_and_mask() -> dict[str, Tensor]:
    """Six tokens each; the second example ends in two tokens of padding."""
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(50, (2, 6)), "attention_mask": mask}


def _ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(50, (2, 6))}


def _first_state(output: Any) -> Tensor:
    state: Tensor = output.last_hidden_state[:, 0]
    return state


def _last_state(output: Any) -> Tensor:
    state: Tensor = output.last_hidden_state[:, -1]
    return state


TRANSFORMERS = [
    Architecture(
        "BERT, first token",
        "transformers.BertModel, 2 layers",
        _bert,
        _tokens_and_mask,
        output=_first_state,
    ),
    Architecture(
        "BERT, pooler",
        "transformers.BertModel, 2 layers",
        _bert,
        _ids,
        output="pooler_output",
    ),
    Architecture(
        "GPT-2, last token",
        "transformers.GPT2Model, 2 layers",
        _gpt2,
        _ids,
        output=_last_state,
    ),
    Architecture(
        "Llama, last token",
        "transformers.LlamaModel, 2 layers",
        _llama,
        _ids,
        output=_last_state,
    ),
]
