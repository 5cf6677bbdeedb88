"""Scores chest X-rays as the original project does. Do not change it: the benchmarks compare with it."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import models, transforms

RESIZE = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


class Original:
    """DenseNet-121 with one output, from the `state_dict` of a checkpoint."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.network = models.densenet121(num_classes=1)
        self.network.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
        self.network.eval()

    def decode(self, data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def infer(self, pixels: list[Tensor]) -> list[float]:
        with torch.no_grad():
            scores: list[float] = torch.sigmoid(self.network(torch.stack(pixels))).flatten().tolist()
        return scores

    def score(self, files: list[bytes]) -> list[float]:
        return self.infer([RESIZE(self.decode(data)) for data in files])
