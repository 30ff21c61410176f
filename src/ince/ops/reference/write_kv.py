"""Writing keys and values to their slots in plain PyTorch."""

from torch import Tensor

from ince.ops.write_kv import WRITE_KV_, check_slots

__all__ = ["write_kv_"]


@WRITE_KV_.backend("default")
def write_kv_(k_pool: Tensor, v_pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """See `ince.ops.write_kv_`."""
    block_size = k_pool.shape[1]
    check_slots(slots, k_pool.shape[0] * block_size)
    blocks, places = slots // block_size, slots % block_size
    k_pool[blocks, places] = k
    v_pool[blocks, places] = v
