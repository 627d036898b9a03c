"""Networks of the papers that timm lacks, and small networks for small images on small machines.

Each is a function (channels, size, …) -> nn.Sequential whose children are the stages, in order.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def conv(i: int, o: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
    )


def nin(blocks: int, channels: int = 3, size: int = 32, width: int = 192) -> nn.Sequential:
    """Network in network as in RotNet on CIFAR-10 (Gidaris 2018, released code): 3 convolutions per block."""

    def block(i: int, kernel: int, *widths: int) -> list[nn.Module]:
        a, b, c = widths
        return [conv(i, a, kernel), conv(a, b, 1), conv(b, c, 1)]

    half, part = width // 2, width * 160 // 192
    stages: list[list[nn.Module]] = [
        [*block(channels, 5, width, part, half), nn.MaxPool2d(3, 2, 1)],
        [*block(half, 5, width, width, width), nn.AvgPool2d(3, 2, 1)],
        *(block(width, 3, width, width, width) for _ in range(blocks - 2)),
    ]
    return nn.Sequential(OrderedDict((f"conv{i + 1}", nn.Sequential(*s)) for i, s in enumerate(stages)))


def alexnet_bn(channels: int = 3, size: int = 224) -> nn.Sequential:
    """AlexNet with batch norm, without groups, up to its two wide layers (Gidaris 2018, released code)."""

    def stage(i: int, o: int, kernel: int, stride: int, padding: int, *then: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            *then, nn.Conv2d(i, o, kernel, stride, padding), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
        )

    def wide(i: int) -> list[nn.Module]:
        return [nn.Linear(i, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(inplace=True)]

    side = ((((size + 4 - 11) // 4 + 1 - 3) // 2 + 1 - 3) // 2 + 1 - 3) // 2 + 1  # 6 at 224
    return nn.Sequential(
        OrderedDict(
            conv1=stage(channels, 64, 11, 4, 2),
            conv2=stage(64, 192, 5, 1, 2, nn.MaxPool2d(3, 2)),
            conv3=stage(192, 384, 3, 1, 1, nn.MaxPool2d(3, 2)),
            conv4=stage(384, 256, 3, 1, 1),
            conv5=stage(256, 256, 3, 1, 1),
            fc=nn.Sequential(nn.MaxPool2d(3, 2), nn.Flatten(), *wide(256 * side * side), *wide(4096)),
        )
    )


def caffe_trunk(channels: int, stride: int) -> list[tuple[str, nn.Sequential]]:
    """conv1 to pool5 of CaffeNet, with its initialization: AlexNet in two groups, with pooling before
    normalization and pooled sides rounded up."""

    def stage(i: int, o: int, kernel: int, groups: int, bias: float, *then: nn.Module, stride: int = 1):
        layer = nn.Conv2d(i, o, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)
        return nn.Sequential(fill(layer, 0.01, bias), nn.ReLU(inplace=True), *then)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, 1e-4, 0.75)

    return [
        ("conv1", stage(channels, 96, 11, 1, 0.0, pool(), norm(), stride=stride)),
        ("conv2", stage(96, 256, 5, 2, 1.0, pool(), norm())),
        ("conv3", stage(256, 384, 3, 1, 0.0)),
        ("conv4", stage(384, 384, 3, 2, 1.0)),
        ("conv5", stage(384, 256, 3, 2, 1.0, pool())),
    ]


def caffe_xavier(weight: Tensor) -> None:
    """Uniform within sqrt(3 / inputs): Caffe's filler of that name does not count the outputs."""
    nn.init.kaiming_uniform_(weight, nonlinearity="linear")


def fill(layer: nn.Conv2d, std: float, bias: float) -> nn.Conv2d:
    """Gaussian weights and constant biases, as in Caffe's prototxt fillers."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return layer


def caffenet(
    channels: int = 3, size: int = 227, fc6: int = 4096, fc7: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """CaffeNet, conv1 to fc7, as trained in papers of its time (TextTopicNet 2017, released code).

    fc6 is a convolution as wide as the last map, 6x6 from 227 px on, so that larger images are accepted.
    `fc7=1024,dropout=0` is the network of Wang & Gupta 2015 (released code).
    """
    side = (size - 11) // 4 + 1
    for _ in range(3):
        side = -((3 - side) // 2) + 1  # pooled, rounded up

    def wide(i: int, o: int, kernel: int) -> nn.Sequential:
        drop = [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(fill(nn.Conv2d(i, o, kernel), 0.005, 1.0), nn.ReLU(inplace=True), *drop)

    ends = [("fc6", wide(256, fc6, min(6, side))), ("fc7", wide(fc6, fc7, 1))]
    return nn.Sequential(OrderedDict(caffe_trunk(channels, 4) + ends))


class Scale(nn.Module):
    """Multiplies its input by a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def cfn(channels: int = 3, size: int = 64) -> nn.Sequential:
    """One column of the context-free network, conv1 to pool5 (Noroozi & Favaro 2016, released code):
    CaffeNet's with stride 2, so that a tile of 64 px ends as 3 x 3.

    It first multiplies its standardized input by 47, the standard deviation of a tile in gray levels
    (measured on Imagenette's photographs of 255 px): initial weights, biases of 1 and local response norms
    are made for 0 … 255 minus the mean (caffe-master-jps/src/caffe/data_transformer.cpp:206-246), and without
    it the output hardly depends on the tiles.
    """
    (_, conv1), *others = caffe_trunk(channels, 2)
    return nn.Sequential(OrderedDict([("conv1", nn.Sequential(Scale(47.0), *conv1)), *others]))


def context_alexnet(channels: int = 3, size: int = 96) -> nn.Sequential:
    """A tower of context prediction, conv1 to pool5 (cdoersch/deepcontext train.py:54-64): AlexNet without
    groups, whose last three convolutions have batch norm without gain and bias; a 96 px patch ends as 3 x 3.

    It first multiplies its standardized input by 50, "the usual AlexNet inputs" (train.py:107-110): biases
    and local response norms are made for these units. Convolutions before a batch norm have no bias.
    """

    def stage(i: int, o: int, kernel: int, stride: int = 1, *then: nn.Module, norm: bool = False):
        layer = nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=not norm)
        caffe_xavier(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        norms = [nn.BatchNorm2d(o, affine=False)] if norm else []
        return nn.Sequential(layer, *norms, nn.ReLU(inplace=True), *then)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def local() -> nn.Module:
        return nn.LocalResponseNorm(5, 1e-4, 0.75)

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Sequential(Scale(50.0), *stage(channels, 96, 11, 4, pool(), local())),
            conv2=stage(96, 256, 5, 1, pool(), local()),
            conv3=stage(256, 384, 3, norm=True),
            conv4=stage(384, 384, 3, norm=True),
            conv5=stage(384, 256, 3, 1, pool(), norm=True),
        )
    )


def for_lightness(net: nn.Sequential) -> nn.Sequential:
    """Divide torch's initial weights of the first layer by 25: L - 50, from -50 to 50, has a standard
    deviation of about 25, and the released initial weights also give outputs of standard deviation 1
    (magic_init_mod.py, initializeLayer)."""
    with torch.no_grad():
        net.get_parameter("conv1.0.weight").div_(25)
    return net


def colornet(channels: int = 1, size: int = 256) -> nn.Sequential:
    """The colorization network of Zhang et al. 2016 (released code), conv1 to conv7: VGG without pooling,
    ends at 1/8; its fifth and sixth block are dilated. One batch norm, without gain and bias, per block.
    Its input is L - 50."""

    def stage(i: int, o: int, count: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(count):
            step = stride if number == count - 1 else 1
            layers += [
                nn.Conv2d(o if number else i, o, 3, step, dilation, dilation),
                nn.ReLU(inplace=True),
            ]
        return nn.Sequential(*layers, nn.BatchNorm2d(o, affine=False))

    net: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=stage(channels, 64, 2, stride=2),
        conv2=stage(64, 128, 2, stride=2),
        conv3=stage(128, 256, 3, stride=2),
        conv4=stage(256, 512, 3),
        conv5=stage(512, 512, 3, dilation=2),
        conv6=stage(512, 512, 3, dilation=2),
        conv7=stage(512, 512, 3),
    )
    return for_lightness(nn.Sequential(net))


def color_alexnet(channels: int = 1, size: int = 180) -> nn.Sequential:
    """The feature-learning network of Zhang et al. 2016 (released code), conv1 to fc7: AlexNet with batch
    norm between each convolution and its ReLU, and a dilated 6x6 convolution as first wide layer; the last
    pooling has stride 1, so it ends at 1/16. Its input is L - 50."""

    def stage(
        i: int,
        o: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        pool: int = 0,
        dilation: int = 1,
        std: float = 0.0,
    ):
        reach = dilation * (kernel - 1)
        layer = nn.Conv2d(i, o, kernel, stride, (reach + 1) // 2, dilation, groups)
        if std:
            fill(layer, std, 1.0)
        pools = [nn.MaxPool2d(3, pool, 1, ceil_mode=True)] if pool else []
        return nn.Sequential(layer, nn.BatchNorm2d(o, affine=False), nn.ReLU(inplace=True), *pools)

    net: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=stage(channels, 96, 11, stride=4, pool=2),
        conv2=stage(96, 256, 5, groups=2, pool=2),
        conv3=stage(256, 384, 3),
        conv4=stage(384, 384, 3, groups=2),
        conv5=stage(384, 256, 3, groups=2, pool=1),
        fc6=stage(256, 4096, 6, dilation=2, std=0.005),
        fc7=stage(4096, 4096, 1, std=0.005),
    )
    return for_lightness(nn.Sequential(net))


def scene_alexnet(channels: int = 3, size: int = 227) -> nn.Sequential:
    """The trunk of Ren & Lee 2018 (released code), conv1 to fc7: CaffeNet without groups, batch norm after
    every convolution; the last pooling has stride 1 and the wide layers are convolutions, so it ends at 13
    x 13 for 227 px."""

    def stage(
        i: int, o: int, kernel: int, padding: int, *then: nn.Module, stride: int = 1, dilation: int = 1
    ):
        layer = nn.Conv2d(i, o, kernel, stride, padding, dilation)
        return nn.Sequential(*then, layer, nn.BatchNorm2d(o), nn.ReLU(inplace=True))

    return nn.Sequential(
        OrderedDict(
            conv1=stage(channels, 96, 11, 2, stride=4),
            conv2=stage(96, 256, 5, 2, nn.MaxPool2d(3, 2)),
            conv3=stage(256, 384, 3, 1, nn.MaxPool2d(3, 2)),
            conv4=stage(384, 384, 3, 1),
            conv5=stage(384, 256, 3, 1),
            fc6=stage(256, 4096, 6, 5, nn.MaxPool2d(3, 1, 1), dilation=2),
            fc7=stage(4096, 4096, 1, 0),
        )
    )


def exemplar(channels: int = 3, size: int = 96, patch: int = 32) -> nn.Sequential:
    """The medium network of Exemplar-CNN, 64c5-128c5-256c5-512f (Dosovitskiy 2014, released code): its
    fully connected layer is a convolution as wide as the map of a patch of `patch` pixels, so that whole
    images are accepted. Max pooling is over 3x3 pixels, rounded up, as in the released network; the paper
    says 2x2."""

    def stage(i: int, o: int, kernel: int, padding: int, *then: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, kernel, 1, padding), nn.ReLU(inplace=True), *then)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        OrderedDict(
            conv1=stage(channels, 64, 5, 2, pool()),
            conv2=stage(64, 128, 5, 2, pool()),
            conv3=stage(128, 256, 5, 2),
            fc=stage(256, 512, patch // 4, 0),
        )
    )


def color_vgg16(channels: int = 1, size: int = 224, width: int = 64, wide: int = 4096) -> nn.Sequential:
    """VGG-16 as a colorizer reads it (Larsson 2016 and 2017, released code): each of its 13 convolutions,
    and fc6 and fc7 as convolutions of 7x7 and 1x1, is a stage; batch norm without gain and bias, dropout
    0.5 after fc6 and fc7. 12,416 channels in all."""

    def stage(i: int, o: int, kernel: int, *pool: nn.Module, dropout: float = 0.0) -> nn.Sequential:
        layer = nn.Conv2d(i, o, kernel, 1, kernel // 2, bias=False)  # the batch norm cancels a bias
        caffe_xavier(layer.weight)
        drop = [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*pool, layer, nn.BatchNorm2d(o, affine=False), nn.ReLU(inplace=True), *drop)

    named, i = {}, channels
    for block, (times, layers) in enumerate([(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)]):
        for n in range(layers):
            pool = [nn.MaxPool2d(2)] if block and n == 0 else []
            named[f"conv{block + 1}_{n + 1}"] = stage(i, times * width, 3, *pool)
            i = times * width
    named["fc6"] = stage(i, wide, 7, nn.MaxPool2d(2), dropout=0.5)
    named["fc7"] = stage(wide, wide, 1, dropout=0.5)
    return nn.Sequential(OrderedDict(named))


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip connection, pooled (or `strided`) and widened where a stage begins."""

    def __init__(self, i: int, o: int, stride: int, strided: bool = False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, 1, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        pool, step = ([], stride) if strided else ([nn.AvgPool2d(stride, ceil_mode=True)], 1)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and i == o
            else nn.Sequential(*pool, nn.Conv2d(i, o, 1, step, bias=False), nn.BatchNorm2d(o))
        )
        self.out = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.out(self.body(x) + self.shortcut(x))


def resnet_small(
    channels: int = 3,
    size: int = 32,
    width: int = 64,
    blocks: int = 1,
    stages: int = 3,
    stride: int = 2,
    wide: int = 0,
    strided: bool = False,
) -> nn.Sequential:
    """A ResNet for images of 28 to 64 px: a 3x3 stem of stride 2, then three stages that end at 1/8.

    `wide` adds a final 1x1 convolution to that many channels: a narrow, fast network with wide features.
    `blocks=2,stages=4,stride=1,strided=True` is the ResNet-18 of the CIFAR papers: no downsampling before the
    second stage, and skip connections with 1x1 convolutions of stride 2 (the others pool first, which loses
    no pixel).
    """
    named: dict[str, nn.Module] = {"stem": conv(channels, width, 3, stride)}
    i = width
    for s in range(stages):
        o = width * 2**s
        units = [Residual(i if b == 0 else o, o, 2 if s and b == 0 else 1, strided) for b in range(blocks)]
        named[f"stage{s + 1}"] = nn.Sequential(*units)
        i = o
    if wide:
        named["wide"] = conv(i, wide, 1)
    return nn.Sequential(OrderedDict(named))


def resnet50_cifar(channels: int = 3, size: int = 32) -> nn.Sequential:
    """ResNet-50 for images of 32 px (Chen et al. 2020, appendix B.9): its stem is a 3x3 convolution of
    stride 1 without pooling, so it ends at 1/8."""
    import timm  # slower to import than torch

    net: Any = timm.create_model("resnet50", num_classes=0)
    first = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(
        first.weight, mode="fan_out", nonlinearity="relu"
    )  # as timm initializes the others
    stages = {f"stage{n}": getattr(net, f"layer{n}") for n in (1, 2, 3, 4)}
    return nn.Sequential(OrderedDict(stem=nn.Sequential(first, net.bn1, net.act1), **stages))


def mlp(channels: int = 1, size: int = 28, width: int = 1000, depth: int = 3) -> nn.Sequential:
    """Sigmoid layers of one width, as in Vincent et al. 2010; the first takes all pixels as a vector.

    Weights are uniform within 4·sqrt(6 / (inputs + outputs)), biases 0 (LISA deep learning tutorial).
    """
    stages = OrderedDict()
    i = channels * size * size
    for d in range(depth):
        flat = [nn.Flatten()] if d == 0 else []
        linear = nn.Linear(i, width)
        nn.init.xavier_uniform_(linear.weight, gain=4)
        nn.init.zeros_(linear.bias)
        stages[f"layer{d + 1}"] = nn.Sequential(*flat, linear, nn.Sigmoid())
        i = width
    return nn.Sequential(stages)


def jule(
    channels: int = 1, size: int = 32, width: int = 50, blocks: int = 2, pools: int = 0
) -> nn.Sequential:
    """The networks of JULE (Yang 2016, released code): unpadded 5x5 convolutions, the first `pools` of
    them with pooling, 0: all; 1250 features for an image of 32 px. `blocks=2,pools=1` is for MNIST,
    `blocks=1` for 16 px, `blocks=4` for 128."""
    stages = OrderedDict()
    for b in range(blocks):
        layer = nn.Conv2d(width if b else channels, width, 5)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        pool = [nn.MaxPool2d(2, ceil_mode=True)] if b < (pools or blocks) else []
        stages[f"conv{b + 1}"] = nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool)
    return nn.Sequential(stages | {"flat": nn.Flatten()})


NETS: dict[str, Callable[..., nn.Sequential]] = {
    "nin3": lambda **k: nin(3, **k),
    "nin4": lambda **k: nin(4, **k),
    "nin5": lambda **k: nin(5, **k),
    "alexnet_bn": alexnet_bn,
    "caffenet": caffenet,
    "cfn": cfn,
    "exemplar": exemplar,
    "scene_alexnet": scene_alexnet,
    "context_alexnet": context_alexnet,
    "colornet": colornet,
    "color_alexnet": color_alexnet,
    "color_vgg16": color_vgg16,
    "resnet_small": resnet_small,
    "resnet50_cifar": resnet50_cifar,
    "mlp": mlp,
    "jule": jule,
}

NORMALIZATION: Mapping[str, tuple[tuple[float, ...], float]] = {
    "mlp": ((0.0,), 1.0),  # reconstructs pixels
    "exemplar": ((0.5,), 256 / 255),  # bytes over 256 (released code)
    "caffenet": ((122.67892 / 255, 116.66877 / 255, 104.00699 / 255), 1 / 255),
    "scene_alexnet": (
        (0.449,),
        1.0,
    ),  # mean of ImageNet's three, the same for all channels (released train.py:19)
    "colornet": ((0.5,), 0.01),  # L - 50 (released data_l_meansub)
    "color_alexnet": ((0.5,), 0.01),  # the same
    "color_vgg16": ((0.4488,), 1.0),  # (released train_vgg16.prototxt:39)
}
"""per-channel mean and standard deviation of pixels, if not 0.5 and 0.25: Caffe uses 0 … 255 minus the
mean (that of TextTopicNet, released code), for which its initial weights and local response norms are made"""
