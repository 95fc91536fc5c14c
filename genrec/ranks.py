"""This process among those that work together: its rank, and sums over all of them.

Without a process group there is one rank, and every sum is what it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

MESSAGE_BYTES = 2**26
"by which something large goes from rank to rank; with NCCL through the GPU's memory"


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Each value summed over all ranks, in float64. Every rank must call it with equally many values."""
    if rank_and_world()[1] == 1:
        return [float(value) for value in values]
    total = torch.tensor(values, dtype=torch.float64, device=message_device())
    dist.all_reduce(total)
    return [float(value) for value in total]


def from_first_rank(data: bytes) -> bytes:
    """The `data` of rank 0, on every rank; what the others give is not looked at."""
    if rank_and_world()[1] == 1:
        return data
    is_first, device = rank_and_world()[0] == 0, message_device()
    size = int(sum_over_ranks([len(data) if is_first else 0])[0])
    received = bytearray()
    for start in range(0, size, MESSAGE_BYTES):
        part = (
            bytearray(data[start : start + MESSAGE_BYTES]) if is_first else bytearray(min(MESSAGE_BYTES, size - start))
        )
        message = torch.frombuffer(part, dtype=torch.uint8).to(device)
        dist.broadcast(message, src=0)
        received += message.cpu().numpy().tobytes()
    return bytes(received)


def message_device() -> str:
    """Where a tensor must be that ranks exchange: NCCL cannot move what is on the CPU."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def union_over_ranks(flags: np.ndarray) -> np.ndarray:
    """Where any rank has a 1, in an array of 0 and 1 (uint8). Every rank must call it with the same shape."""
    if rank_and_world()[1] == 1:
        return flags
    united = torch.from_numpy(flags).to(message_device(), copy=True)
    dist.all_reduce(united, op=dist.ReduceOp.MAX)
    return united.cpu().numpy()
