"""Makes DenseNet-121 with random weights: a checkpoint like NIH's, and its bundles in fp32 and int8.

NIH's own weights may not be redistributed. The speed of a network does not depend on its weights. But two
engines can only be seen to agree on scores that differ between images, as those of a trained network do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from classifier.decode import decode
from classifier.preprocessing import Preprocessing
from torch import Tensor, nn
from torchvision.models import DenseNet, densenet121

CHECKPOINT = "densenet121"
PIXELS = Preprocessing(channels=3, resize=256, crop=224)


def randomise(network: DenseNet, inputs: Tensor) -> DenseNet:
    """Draw random weights with which the logits of `inputs` have mean 0 and standard deviation 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.2, 0.2)
                module.momentum = None  # running statistics are plain means over `inputs`
        network.train()(inputs)
        network.eval()
        network.classifier.weight.normal_()
        logits = network(inputs)
        network.classifier.weight /= logits.std(0)[:, None]
        network.classifier.bias -= logits.mean(0) / logits.std(0)
    return network


def main() -> None:
    """`python -m benchmarks.random_densenet DIR IMAGES` writes DIR/densenet121, DIR/fp32 and DIR/int8."""
    out, images = map(Path, sys.argv[1:])
    files = sorted(path for path in images.rglob("*.png"))[:16]
    pixels = torch.stack([torch.from_numpy(PIXELS(decode(path.read_bytes()))) for path in files])
    network = randomise(densenet121(num_classes=1), (pixels - 118.0) / 58.0)
    torch.save({"state_dict": network.state_dict()}, out / CHECKPOINT)
    export = (sys.executable, "-m", "training.export", "nih", str(out / CHECKPOINT))
    for options in (
        ("--out", str(out / "fp32")),
        ("--out", str(out / "int8"), "--int8", "--images", str(images)),
    ):
        subprocess.run([*export, *options], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own module


if __name__ == "__main__":
    main()
