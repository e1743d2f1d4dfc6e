"""Two gloo processes that run the same function, as two ranks of a training run do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(main: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """What ``main(rank, *args)`` returned on each rank (tensors and plain values).

    Args:
        main: of a module, so that a fresh process finds it.
        folder: for what the ranks hand over.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_begin, args=(port, folder, main, args), nprocs=2)  # pyright: ignore
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def _begin(rank: int, port: int, folder: Path, main: Callable[..., Any], args: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    wait = timedelta(seconds=120)  # a rank that waits for nobody ends
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=wait)
    torch.save(main(rank, *args), folder / f"rank-{rank}.pt")
    dist.barrier()  # rank 0 keeps the store
    # gloo's threads now and then abort a process that takes itself down in order; what a rank has
    # to say is on disk. How a real run leaves its group is crew.py's, and tested there.
    os._exit(0)
