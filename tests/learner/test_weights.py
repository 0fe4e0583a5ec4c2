from dataclasses import replace

import numpy as np
import pytest
import torch

from rollout.weights import CorruptWeightsError, copy_into, pack, unpack


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).bfloat16(),
        "c": torch.arange(4),
        "scalar": torch.tensor(2.0),
    }


def test_unpacked_tensors_are_those_that_were_packed():
    buffer = pack(tensors().items(), version=3)
    found = unpack(buffer)
    assert buffer.version == 3
    assert list(found) == list(tensors())
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors().items())


def test_unpacking_copies_nothing():
    buffer = pack(tensors().items(), version=0)
    assert np.shares_memory(unpack(buffer)["a"].numpy(), buffer.data)


def test_a_buffer_is_reused_for_the_next_version():
    first = pack(tensors().items(), version=0)
    second = pack([(name, 2 * tensor) for name, tensor in tensors().items()], version=1, into=first.data)
    assert second.data is first.data
    assert torch.equal(unpack(second)["a"], 2 * tensors()["a"])


@pytest.mark.parametrize("change", ["a byte", "the version", "the manifest"])
def test_a_corrupt_buffer_is_refused(change):
    buffer = pack(tensors().items(), version=5)
    if change == "a byte":
        data = buffer.data.copy()
        data[11] ^= 1
        buffer = replace(buffer, data=data)
    elif change == "the version":
        buffer = replace(buffer, version=6)
    else:
        buffer = replace(buffer, manifest=tuple(reversed(buffer.manifest)))
    with pytest.raises(CorruptWeightsError, match="checksum"):
        unpack(buffer)


def test_a_read_only_buffer_as_ray_delivers_it_is_unpacked_without_a_warning(recwarn):
    buffer = pack(tensors().items(), version=0)
    buffer.data.flags.writeable = False
    unpack(buffer)
    assert not recwarn.list


def test_names_that_are_missing_on_either_side_are_refused_and_the_model_stays_as_it_was():
    model = torch.nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=r"extra \(1 in all\) were sent but the model has none"):
        copy_into(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"bias \(1 in all\) were not sent"):
        copy_into(model, {"weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="weight was sent as"):
        copy_into(model, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})
    assert torch.equal(model.weight, before)


def test_weights_arrive_in_the_dtype_of_the_model():
    model = torch.nn.Linear(2, 3).bfloat16()
    copy_into(model, {"weight": torch.full((3, 2), 0.5), "bias": torch.ones(3)})
    assert model.weight.dtype == torch.bfloat16
    assert (model.weight == 0.5).all()
