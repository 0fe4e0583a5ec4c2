"""Whether this machine's CPU is faster in bfloat16 than in float32."""

from __future__ import annotations


def multiplies_in_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16: AVX-512 BF16 (AMD Zen 4 and 5, Intel Cooper Lake) or AMX (Intel Sapphire Rapids
    and later). Such products are 3 to 5 times as fast as those in float32; elsewhere they are slower."""
    import torch  # not above: configurations are read without it

    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
