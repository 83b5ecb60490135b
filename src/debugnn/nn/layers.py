"""Maxout, which torch.nn lacks."""

from torch import Tensor, nn


class Maxout(nn.Module):
    """The largest of `pieces` linear maps (Goodfellow et al. 2013, arXiv:1302.4389).

    Maps (B, width · pieces, …) to (B, width, …). `expansion` tells `network` how many times its
    width the layer before has to produce.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.expansion = pieces

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.unflatten(1, (-1, self.expansion)).amax(dim=2)
