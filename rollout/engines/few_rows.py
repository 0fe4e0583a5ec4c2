"""Matrix products of few rows, as in decoding, on a CPU in float32: BLAS computes `weight @ rows.T` up to three times as fast as `rows @ weight.T`.
In bfloat16 it is slower."""

from __future__ import annotations

import torch
from torch import nn

MOST_ROWS = 48  # with more, the usual product is faster
FEWEST_WEIGHTS = 2**18  # with fewer, the copies cost more than they save


class FewRowsLinear(nn.Linear):
    """The same product as `nn.Linear`, up to rounding."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, self.in_features)
        if not 1 < len(rows) <= MOST_ROWS or input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        product = torch.mm(self.weight, rows.t()).t().contiguous()
        if self.bias is not None:
            product += self.bias
        return product.view(*input.shape[:-1], self.out_features)


def speed_up_few_rows(model: nn.Module) -> None:
    """Give all large linear layers of `model` the faster product; weights and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= FEWEST_WEIGHTS:
            module.__class__ = FewRowsLinear
