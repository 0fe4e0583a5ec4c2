from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_turns import packed

from rollout.weight_buckets import CorruptWeightsError, Inbox, MissingWeightsError, Packer, copy_into, refuse_corrupt, seal, unpack_weights


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).bfloat16(),
        "c": torch.arange(4),
        "scalar": torch.tensor(2.0),
    }


def test_unpacked_tensors_are_those_that_were_packed():
    found = unpack_weights(packed(tensors().items()))
    assert list(found) == list(tensors())
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors().items())


def test_unpacking_copies_nothing():
    buckets = packed(tensors().items())
    assert np.shares_memory(unpack_weights(buckets)["a"].numpy(), buckets[0].data)


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20), bucket_bytes=st.integers(1, 2000))
def test_buckets_of_any_size_hold_every_tensor_once_and_no_bucket_is_larger_than_asked_for(sizes, bucket_bytes):
    named = {f"t{i}": torch.arange(size, dtype=torch.float32) + i for i, size in enumerate(sizes)}
    buckets = packed(named.items(), bucket_bytes)
    found = unpack_weights(buckets)
    assert list(found) == list(named)
    assert all(torch.equal(found[name], named[name]) for name in named)
    assert all(len(bucket.data) <= bucket_bytes or len(bucket.manifest) == 1 for bucket in buckets)


def test_the_memory_of_buckets_is_kept_and_what_another_bucket_left_there_does_not_count():
    packer = Packer(bucket_bytes=128)
    first = [(bucket.data.__array_interface__["data"], bucket.checksum) for bucket in packer.buckets(tensors().items())]
    again = [(bucket.data.__array_interface__["data"], bucket.checksum) for bucket in packer.buckets(tensors().items())]
    assert first == again
    assert len({where for where, _ in first}) == 1 < len(first)


def test_only_the_bucket_of_a_tensor_that_changed_is_another_one():
    before = packed(tensors().items(), bucket_bytes=64)
    after = packed((tensors() | {"b": torch.zeros(7).bfloat16()}).items(), bucket_bytes=64)
    same = [old.checksum == new.checksum for old, new in zip(before, after, strict=True)]
    assert same == [True, False, True, True]


@pytest.mark.parametrize("change", ["a byte", "the manifest"])
def test_a_corrupt_bucket_is_refused_and_named(change):
    bucket = packed(tensors().items(), bucket_bytes=128)[1]
    if change == "a byte":
        data = bucket.data.copy()
        data[11] ^= 1
        bucket = replace(bucket, data=data)
    else:
        bucket = replace(bucket, manifest=tuple(reversed(bucket.manifest)))
    with pytest.raises(CorruptWeightsError, match=r"weights, bucket 2 of policy version 5: checksum"):
        refuse_corrupt(bucket, "bucket 2 of policy version 5")
    inbox = Inbox()
    with pytest.raises(CorruptWeightsError, match="bucket 2"):
        inbox.take(1, bucket)


def test_a_receiver_takes_over_exactly_the_buckets_that_it_is_asked_for_or_none():
    first, second = (packed([(n, k * t) for n, t in tensors().items()], bucket_bytes=64) for k in (1, 2))
    inbox = Inbox()
    for number, bucket in enumerate(first):
        inbox.take(number, bucket)
    checksums = [bucket.checksum for bucket in first]
    assert torch.equal(inbox.tensors(1, checksums)["a"], tensors()["a"])
    assert seal(1, checksums) != seal(2, checksums)
    inbox.take(2, second[2])
    with pytest.raises(MissingWeightsError, match=r"policy version 1: 1 of 4 buckets \(3\) are not here"):
        inbox.tensors(1, checksums)
    with pytest.raises(MissingWeightsError, match=r"policy version 2: 3 of 4 buckets \(1, 2, 4\) are not here"):
        inbox.tensors(2, [bucket.checksum for bucket in second])


def test_a_read_only_buffer_as_ray_delivers_it_is_unpacked_without_a_warning(recwarn):
    buckets = packed(tensors().items())
    buckets[0].data.flags.writeable = False
    unpack_weights(buckets)
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
