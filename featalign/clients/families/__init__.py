"""The families that come along, one file each; importing them registers them."""

from featalign.clients.families.conv1d import Conv1dConfig
from featalign.clients.families.decoder import DecoderConfig
from featalign.clients.families.encoder import EncoderConfig
from featalign.clients.families.mlp import MLPConfig
from featalign.clients.families.resnet import ResNet18Config, ResNet20Config
from featalign.clients.families.vgg import VGGConfig
from featalign.clients.families.vit import ViTConfig

__all__ = [
    "Conv1dConfig",
    "DecoderConfig",
    "EncoderConfig",
    "MLPConfig",
    "ResNet18Config",
    "ResNet20Config",
    "VGGConfig",
    "ViTConfig",
]
