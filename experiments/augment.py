"""Random distortions of training images and softer labels, drawn from a generator that is handed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ELASTIC_GRAIN = 7  # pixels between the drawn displacements of an elastic distortion


@dataclass(frozen=True)
class Augment:
    """Every image moved, turned, zoomed and warped by its own draw, with bilinear interpolation.

    shift: most pixels along each axis, whole numbers drawn uniformly. rotation: most degrees; zoom: most
    relative change of size; both uniform. elastic: standard deviation in pixels of smooth random displacements
    (Simard et al. 2003), drawn every 7 pixels and interpolated. What comes in from outside repeats the border.
    """

    shift: int = 2
    rotation: float = 0.0
    zoom: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.shift, int) and self.shift >= 0):
            raise ValueError(f"shift = {self.shift}; choose a whole number of pixels >= 0, such as 2")
        for name, below in (("rotation", 180), ("zoom", 1), ("elastic", math.inf)):
            if not 0 <= getattr(self, name) < below:
                raise ValueError(f"{name} = {getattr(self, name)}; choose 0 <= {name} < {below}")

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Distorted images (B, C, H, W)."""
        batch, (height, width) = len(images), images.shape[2:]

        def uniform(most: float) -> Tensor:
            return most * (2 * torch.rand(batch, generator=rng, device=rng.device) - 1)

        angle, size = uniform(math.radians(self.rotation)), 1 + uniform(self.zoom)
        whole = (-self.shift, self.shift + 1)
        moves = torch.randint(*whole, (batch, 2), generator=rng, device=rng.device)
        # grids count from -1 to 1, a pixel is 2 / width; where an output pixel comes from is the inverse map
        per_pixel = torch.tensor([2 / width, 2 / height], device=rng.device)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        inverse = torch.cat([turn / size.view(-1, 1, 1), (moves * per_pixel).unsqueeze(2)], 2)
        grid = F.affine_grid(inverse, [batch, 1, height, width], align_corners=False)
        if self.elastic:
            coarse = (batch, 2, -(-height // ELASTIC_GRAIN), -(-width // ELASTIC_GRAIN))
            drawn = torch.randn(coarse, generator=rng, device=rng.device)
            smooth = F.interpolate(drawn, (height, width), mode="bicubic", align_corners=False)
            grid = grid + self.elastic * per_pixel * smooth.permute(0, 2, 3, 1)
        grid = grid.to(images)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels (B,) as distributions (B, classes): 1 - smoothing on the label, the rest spread over all classes
    (Szegedy et al. 2016, section 7)."""
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
