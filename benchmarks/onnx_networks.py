"""Small PyTorch networks of the kinds that people have, as ONNX files of both exporters: the input of onnx_sweep.py.

    pip install torch onnx onnxscript
    python benchmarks/onnx_networks.py FOLDER [--only NAME ...]

Writes FOLDER/NAME.legacy.onnx and FOLDER/NAME.dynamo.onnx, the batch open wherever the exporter can do it. Weights are
drawn from one seed, so the files are the same every time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

IMAGE = (1, 8, 8)


class Net(nn.Module):
    """A function of layers and images."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module | torch.Tensor):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                setattr(self, name, layer)
            else:
                self.register_buffer(name, layer)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The function of them."""
        return self.function(self, images)


def dense(*activations: nn.Module) -> nn.Module:
    """A dense layer before each activation, and one after the last."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = 64
    for activation in activations:
        layers += [nn.Linear(width, 12), activation]
        width = 12
    return nn.Sequential(*layers, nn.Linear(width, 3))


def conv(*layers: nn.Module, features: int) -> nn.Module:
    """Layers over images, and a dense one at the end."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


def body(function: Callable[[Any, torch.Tensor], torch.Tensor], features: int, **layers: Any) -> nn.Module:
    """Four channels of 8 x 8 by a convolution, any function of them, and a dense layer."""

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.head(function(net, torch.relu(net.stem(x))).flatten(1))

    return Net(forward, stem=nn.Conv2d(1, 4, 3, padding=1), head=nn.Linear(features, 3), **layers)


def hidden(function: Callable[[Any, torch.Tensor], torch.Tensor], features: int = 12, **layers: Any) -> nn.Module:
    """Twelve features by a dense layer, any function of them, and a dense layer."""

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.head(function(net, net.stem(x.flatten(1))).flatten(1))

    return Net(forward, stem=nn.Linear(64, 12), head=nn.Linear(features, 3), **layers)


def rows(function: Callable[[Any, torch.Tensor], torch.Tensor], features: int, **layers: Any) -> nn.Module:
    """The eight rows of an image as a sequence."""
    return Net(lambda net, x: net.head(function(net, x[:, 0]).flatten(1)), head=nn.Linear(features, 3), **layers)


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of images."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def squeeze_excite(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Channels weighed by what their means make of them."""
    weights = torch.sigmoid(net.up(torch.relu(net.down(x.mean((2, 3))))))
    return x * weights[:, :, None, None]


def shuffled(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Grouped convolutions with the channels of groups mixed between them."""
    n, channels, height, width = x.shape
    x = net.first(x).view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
    return net.second(x)


def attention(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Two heads by hand, with the shapes computed."""
    n, length, width = x.shape
    query, key, value = net.qkv(x).reshape(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query @ key.transpose(-2, -1) / (width // 2) ** 0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).reshape(n, length, width)


def masked_attention(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Each row looks at those before it."""
    scores = net.query(x) @ net.key(x).transpose(1, 2) / 8**0.5
    mask = torch.ones(x.shape[1], x.shape[1]).tril() == 0
    return scores.masked_fill(mask, float("-inf")).softmax(-1) @ x


class Transformer(nn.Module):
    """A vision transformer: patches of 4 x 4, a class token, learned positions, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of images."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.second(x))
        return self.head(x[:, 0])


class UNet(nn.Module):
    """Down, up by what is given, and the skip."""

    def __init__(self, up: nn.Module):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.last, self.head = up, nn.Conv2d(8, 2, 3, padding=1), nn.Linear(128, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of images."""
        wide = torch.relu(self.down1(x))
        deep = torch.relu(self.down2(F.max_pool2d(wide, 2)))
        return self.head(torch.relu(self.last(torch.cat([wide, self.up(deep)], 1))).flatten(1))


def mixture(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Three experts, and a gate that weighs them."""
    weights = net.gate(x).softmax(-1)
    return (torch.stack([net.one(x), net.two(x), net.three(x)], 1) * weights.unsqueeze(-1)).sum(1)


def window_statistics(net: Any, x: torch.Tensor) -> torch.Tensor:
    """The largest of each window, by `unfold`."""
    windows = F.unfold(x, 2, stride=2)
    return windows.view(x.shape[0], x.shape[1], 4, -1).amax(2)


def assigned(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Entries written into zeros."""
    out = torch.zeros_like(x)
    out[:, :, 1:-1, 1:-1] = x[:, :, :-2, 2:]
    return out + x


def coordinates(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Channels that say where a pixel is."""
    height, width = x.shape[2:]
    y, z = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([y, z]).expand(x.shape[0], -1, -1, -1)
    return net.conv(torch.cat([x, grid], 1))


def recurrent(layer: nn.Module, features: int, last: bool = False) -> nn.Module:
    """A recurrent layer over the rows of an image."""
    return rows(lambda net, x: net.layer(x)[0][:, -1] if last else net.layer(x)[0], features, layer=layer)


def scalars(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Numbers made of sizes."""
    n, channels, height, width = x.size()
    side = max(height // 2, 1)
    x = x[:, : channels - channels % 2].view(n, -1, side * side)
    return x / (x.shape[-1] ** 0.5) + (width - height)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # Dense layers and activations.
    "mlp": lambda: dense(nn.ReLU(), nn.ReLU()),
    "mlp_batch_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)
    ),
    "mlp_layer_norm": lambda: dense(nn.Sequential(nn.LayerNorm(12), nn.ReLU())),
    "mlp_dropout": lambda: dense(nn.Sequential(nn.ReLU(), nn.Dropout(0.5))),
    "tanh_sigmoid": lambda: dense(nn.Tanh(), nn.Sigmoid()),
    "leaky_prelu": lambda: dense(nn.LeakyReLU(0.1), nn.PReLU(12)),
    "gelu": lambda: dense(nn.GELU(), nn.GELU("tanh")),
    "silu_mish": lambda: dense(nn.SiLU(), nn.Mish()),
    "hard": lambda: dense(nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh()),
    "selu_celu_elu": lambda: dense(nn.SELU(), nn.CELU(0.7), nn.ELU(0.5)),
    "softplus_softsign": lambda: dense(nn.Softplus(), nn.Softsign(), nn.LogSigmoid()),
    "shrinks": lambda: dense(nn.Hardshrink(0.2), nn.Softshrink(0.1), nn.Tanhshrink()),
    "threshold_relu6": lambda: dense(nn.Threshold(0.0, 0.0), nn.ReLU6()),
    "glu": lambda: hidden(lambda net, x: F.glu(x), 6),
    "maxout": lambda: hidden(lambda net, x: x.view(-1, 4, 3).amax(-1), 4),
    "weight_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 12)), nn.ReLU(), nn.Linear(12, 3)
    ),
    # Convolutions and pools.
    "cnn": lambda: conv(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU(), features=32),
    "max_pool": lambda: conv(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), features=64),
    "average_pool": lambda: conv(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1, count_include_pad=False)),
        features=64,
    ),
    "average_pool_ceil": lambda: conv(nn.Conv2d(1, 4, 4), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True), features=36),
    "adaptive_average": lambda: body(lambda net, x: F.adaptive_avg_pool2d(x, 1), 4),
    "adaptive_some": lambda: body(lambda net, x: F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4), 64),
    "depthwise": lambda: conv(
        nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), features=128
    ),
    "dilated": lambda: conv(
        nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool2d(2, dilation=2), features=36
    ),
    "same_padding": lambda: conv(nn.Conv2d(1, 4, 4, padding="same"), nn.ReLU(), nn.MaxPool2d(4), features=16),
    "channel_shuffle": lambda: body(
        shuffled, 256, first=nn.Conv2d(4, 4, 1, groups=2), second=nn.Conv2d(4, 4, 3, padding=1, groups=2)
    ),
    "conv1d": lambda: rows(
        lambda net, x: F.avg_pool1d(F.max_pool1d(torch.relu(net.conv(x)), 2), 3, 1, 1),
        16,
        conv=nn.Conv1d(8, 4, 3, padding=1),
    ),
    "conv3d": lambda: Net(
        lambda net, x: net.head(F.max_pool3d(torch.relu(net.conv(x.view(-1, 1, 4, 4, 4))), 2).flatten(1)),
        conv=nn.Conv3d(1, 2, 3, padding=1),
        head=nn.Linear(16, 3),
    ),
    "conv3d_transpose": lambda: Net(
        lambda net, x: net.head(F.avg_pool3d(net.conv(x.view(-1, 1, 4, 4, 4)), 2, ceil_mode=True).flatten(1)),
        conv=nn.ConvTranspose3d(1, 2, 3, 2, 1),
        head=nn.Linear(128, 3),
    ),
    "lp_pool": lambda: body(lambda net, x: F.lp_pool2d(x + 0.1, 2, 2), 64),
    "residual": lambda: conv(Residual(1, 4, 1), Residual(4, 8, 2), nn.AdaptiveAvgPool2d(1), features=8),
    "dense_blocks": lambda: body(
        lambda net, x: torch.cat([x, torch.relu(net.one(x)), net.two(torch.cat([x, x], 1))], 1),
        512,
        one=nn.Conv2d(4, 2, 3, padding=1),
        two=nn.Conv2d(8, 2, 1),
    ),
    "inception": lambda: body(
        lambda net, x: torch.cat([net.a(x), net.b(x), F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1)], 1),
        768,
        a=nn.Conv2d(4, 2, 1),
        b=nn.Conv2d(4, 2, (1, 3), padding=(0, 1)),
    ),
    "squeeze_excite": lambda: body(squeeze_excite, 256, down=nn.Linear(4, 2), up=nn.Linear(2, 4)),
    "convnext": lambda: body(
        lambda net, x: x + net.mlp(net.norm(net.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        256,
        conv=nn.Conv2d(4, 4, 5, padding=2, groups=4),
        norm=nn.LayerNorm(4),
        mlp=nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)),
    ),
    # Up.
    "unet_transpose": lambda: UNet(nn.ConvTranspose2d(4, 4, 2, 2)),
    "unet_nearest": lambda: UNet(nn.Upsample(scale_factor=2)),
    "unet_bilinear": lambda: UNet(nn.Upsample(scale_factor=2, mode="bilinear")),
    "unet_aligned": lambda: UNet(nn.Upsample(size=(8, 8), mode="bilinear", align_corners=True)),
    "downsample": lambda: body(lambda net, x: F.interpolate(x, scale_factor=0.5, mode="bilinear"), 64),
    "transpose_stride": lambda: body(
        lambda net, x: net.up(x), 512, up=nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1, groups=2)
    ),
    "pixel_shuffle": lambda: body(lambda net, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4), 256),
    # Padding.
    "pad_reflect_edge": lambda: body(
        lambda net, x: F.avg_pool2d(F.pad(F.pad(x, (1, 2, 0, 1), "reflect"), (1, 0, 1, 1), "replicate"), 3), 48
    ),
    "pad_circular": lambda: body(
        lambda net, x: net.conv(x), 256, conv=nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    ),
    "pad_crop": lambda: body(lambda net, x: F.pad(x, (-1, 2, 1, -2), value=0.5), 252),
    # Normalisation.
    "group_norm": lambda: body(lambda net, x: net.norm(x), 256, norm=nn.GroupNorm(2, 4)),
    "instance_norm": lambda: body(lambda net, x: net.norm(x), 256, norm=nn.InstanceNorm2d(4, affine=True)),
    "layer_norm_image": lambda: body(lambda net, x: net.norm(x), 256, norm=nn.LayerNorm((4, 8, 8))),
    "rms_norm": lambda: hidden(
        lambda net, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * net.scale,
        scale=torch.linspace(0.5, 2, 12),
    ),
    "response_norm": lambda: body(lambda net, x: F.local_response_norm(x, 3, alpha=0.1), 256),
    "standardised": lambda: Net(
        lambda net, x: net.head(
            ((x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 0.1)).flatten(1)
        ),
        head=nn.Linear(64, 3),
    ),
    "norms": lambda: hidden(lambda net, x: torch.stack([x.norm(dim=1), x.norm(p=1, dim=1), x.var(1)], 1), 3),
    "cosine": lambda: Net(
        lambda net, x: 5 * F.normalize(net.stem(x.flatten(1))) @ F.normalize(net.classes).T,
        stem=nn.Linear(64, 12),
        classes=torch.randn(3, 12, generator=torch.Generator().manual_seed(1)),
    ),
    # Attention.
    "transformer": Transformer,
    "encoder_layer": lambda: rows(
        lambda net, x: net.layer(x), 64, layer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ),
    "attention": lambda: rows(attention, 64, qkv=nn.Linear(8, 24)),
    "masked_attention": lambda: rows(masked_attention, 64, query=nn.Linear(8, 8), key=nn.Linear(8, 8)),
    "scaled_dot_product": lambda: rows(
        lambda net, x: F.scaled_dot_product_attention(net.query(x)[:, None], net.key(x)[:, None], x[:, None]),
        64,
        query=nn.Linear(8, 8),
        key=nn.Linear(8, 8),
    ),
    "einsum": lambda: rows(
        lambda net, x: torch.einsum("nqk,nkd->nqd", torch.einsum("nqd,nkd->nqk", net.query(x), x).softmax(-1), x),
        64,
        query=nn.Linear(8, 8),
    ),
    "mixer": lambda: rows(
        lambda net, x: net.channels(x + net.tokens(x.transpose(1, 2)).transpose(1, 2)),
        64,
        tokens=nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)),
        channels=nn.Linear(8, 8),
    ),
    "embedded": lambda: rows(
        lambda net, x: net.proj(x) + net.places(torch.arange(x.shape[1])),
        64,
        proj=nn.Linear(8, 8),
        places=nn.Embedding(8, 8),
    ),
    # Recurrent.
    "lstm": lambda: recurrent(nn.LSTM(8, 4, batch_first=True), 4, last=True),
    "lstm_both": lambda: recurrent(nn.LSTM(8, 3, num_layers=2, batch_first=True, bidirectional=True), 48),
    "gru": lambda: recurrent(nn.GRU(8, 4, batch_first=True), 4, last=True),
    "rnn": lambda: recurrent(nn.RNN(8, 4, batch_first=True), 4, last=True),
    # Tensors taken apart and put together.
    "shape_arithmetic": lambda: body(lambda net, x: x.view(x.shape[0], x.shape[1] // 2, 2, -1).mean(2), 128),
    "scalar_arithmetic": lambda: body(scalars, 256),
    "where_clamp": lambda: hidden(lambda net, x: torch.where(x > 0, x.clamp(max=1.0), 0.1 * x).masked_fill(x > 2, 2.0)),
    "logic": lambda: hidden(lambda net, x: ((x > 0) & ~(x >= 1) | (x < -1)).float() + x * (x != 0)),
    "steps": lambda: hidden(lambda net, x: torch.round(2 * x) + torch.floor(x) - torch.ceil(x) + torch.sign(x) + x),
    "roll_flip": lambda: body(lambda net, x: torch.roll(x, (1, -2), (2, 3)) - x.flip(3), 256),
    "cumsum": lambda: hidden(lambda net, x: torch.cumsum(x, 1)),
    "logsumexp": lambda: hidden(lambda net, x: torch.cat([x.logsumexp(1, keepdim=True), x.log_softmax(1)], 1), 13),
    "reductions": lambda: hidden(
        lambda net, x: torch.stack([x.amin(1), x.amax(1), x[:, :4].prod(1), x.square().sum(1), x.abs().sum(1)], 1), 5
    ),
    "split_stack": lambda: hidden(
        lambda net, x: torch.stack([*x.chunk(3, 1), *x.view(-1, 3, 4).unbind(1)], 1) + x.split((4, 8), 1)[0][:, None],
        24,
    ),
    "index_select": lambda: hidden(
        lambda net, x: x[:, [0, 5, 5, -1]] + x.index_select(1, net.places), 4, places=torch.tensor([3, 2, 1, 0])
    ),
    "gather_rows": lambda: hidden(
        lambda net, x: x.gather(1, net.places.expand(x.shape[0], -1)), 4, places=torch.tensor([[3, 2, 11, 0]])
    ),
    "mixture": lambda: hidden(
        mixture, 6, gate=nn.Linear(12, 3), one=nn.Linear(12, 6), two=nn.Linear(12, 6), three=nn.Linear(12, 6)
    ),
    "expand_repeat": lambda: hidden(
        lambda net, x: x.view(-1, 1, 12).expand(-1, 2, -1) + x.repeat(1, 2).view(-1, 2, 12), 24
    ),
    "unfold": lambda: body(window_statistics, 64),
    "assigned": lambda: body(assigned, 256),
    "coordinates": lambda: body(coordinates, 256, conv=nn.Conv2d(6, 4, 1)),
    "fourier": lambda: hidden(lambda net, x: torch.cat([torch.sin(2 * x), torch.cos(2 * x)], 1), 24),
    "elementary": lambda: hidden(
        lambda net, x: (
            torch.log1p(x.square()) + torch.sqrt(x.abs() + 0.1) + torch.exp(-x) + x.pow(3) / (1 + x**2) + torch.erf(x)
        )
    ),
    "minimum_maximum": lambda: hidden(
        lambda net, x: torch.maximum(x, x.flip(1)) - torch.minimum(x, net.t), t=torch.linspace(-1, 1, 12)
    ),
    "temperature": lambda: Net(lambda net, x: (net.head(x.flatten(1)) / 0.5).softmax(-1), head=nn.Linear(64, 3)),
    "one_hot": lambda: hidden(lambda net, x: x @ F.one_hot(net.places, 4).float(), 4, places=torch.arange(12) % 4),
    "triangle": lambda: rows(lambda net, x: torch.triu(x) + torch.tril(x, -1) * 2, 64),
    "argmax_end": lambda: Net(lambda net, x: net.head(x.flatten(1)).argmax(1), head=nn.Linear(64, 3)),
    "top_end": lambda: Net(lambda net, x: net.head(x.flatten(1)).topk(2, 1)[0], head=nn.Linear(64, 3)),
}


def export(net: nn.Module, path: Path, dynamo: bool) -> str:
    """Write one file; returns "open" or "fixed", which is how the batch came out, or the error."""
    images = torch.rand(2, *IMAGE)
    for batch in ("open", "fixed"):
        if dynamo:
            shapes = {"dynamic_shapes": ({0: torch.export.Dim("n")},) if batch == "open" else None}
        else:
            shapes = {"dynamic_axes": {"images": {0: "n"}} if batch == "open" else None}
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    net,
                    (images,),
                    path,
                    input_names=["images"],
                    output_names=["logits"],
                    dynamo=dynamo,
                    **shapes,
                    **({"external_data": False, "verbose": False} if dynamo else {}),
                )
            return batch
        except Exception as error:  # exporters raise many kinds
            message = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}"
    return message


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # which the legacy exporter does not know
    for name, make in NETWORKS.items():
        if arguments.only and name not in arguments.only:
            continue
        torch.manual_seed(0)
        net = make().eval()
        found = [
            export(net, arguments.folder / f"{name}.{which}.onnx", which == "dynamo") for which in ("legacy", "dynamo")
        ]
        print(name, *found, flush=True)


if __name__ == "__main__":
    main()
