from __future__ import annotations

import pytest
import torch
from torch import nn

from rollout.engines.few_rows import MOST_ROWS, FewRowsLinear, speed_up_few_rows


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(576, 1536), nn.Linear(1536, 576, bias=False), nn.Linear(8, 8)])


@pytest.mark.parametrize("rows", [1, 2, 7, MOST_ROWS, MOST_ROWS + 1])
def test_the_product_is_that_of_the_plain_layer(layers, rows):
    inputs = torch.randn(1, rows, 576)
    plain = layers[1](layers[0](inputs))
    speed_up_few_rows(layers)
    assert [type(layer) for layer in layers] == [FewRowsLinear, FewRowsLinear, nn.Linear]  # the last is too small to gain anything
    found = layers[1](layers[0](inputs))
    assert found.shape == plain.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_weights_keep_their_names_and_learn_as_before(layers):
    names = list(layers.state_dict())
    inputs = torch.randn(16, 576)
    layers[0](inputs).square().sum().backward()
    plain = layers[0].weight.grad.clone()
    layers.zero_grad()
    speed_up_few_rows(layers)
    layers[0](inputs).square().sum().backward()
    assert list(layers.state_dict()) == names
    torch.testing.assert_close(layers[0].weight.grad, plain, atol=1e-2, rtol=1e-4)


def test_in_bfloat16_the_product_is_the_plain_one(layers):
    inputs = torch.randn(8, 576).bfloat16()
    plain = layers.bfloat16()[0](inputs)
    speed_up_few_rows(layers)
    assert torch.equal(layers[0](inputs), plain)
