# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Two machines, pretended on this one, that train together with the flags of train_net.py: one of them hangs.

python -m tests.faults.machines [--gpus 1] [--iterations 6] [--victim 1]

Each runs ``train_net.py --num-machines 2 --machine-rank 0 or 1 --dist-url tcp://127.0.0.1:PORT --num-gpus N
MODEL.DEVICE cpu``, with gloo. A training process of one machine is stopped (SIGSTOP): the other machine has to end with
one line, in bounded time. Both are started again with ``--resume``: the last checkpoint has to be, bit for bit, that of
one machine with all the processes, which nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from ausm_d2 import launch
from ausm_d2.errors import cli
from tests.faults.kill_and_resume import difference, kill, training_cfg, wait

_TIMEOUT = 10.0  # --timeout, seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(folder: Path, rank: int, machines: int, gpus: int, port: int, iterations: int, *more: str) -> int:
    """Fork a machine that trains in ``folder / "out"``; what it says is in ``folder / f"said{rank}.txt"``."""
    cfg = training_cfg(folder / "out", workers=0, iterations=iterations, clips=machines * gpus)
    cfg.defrost()
    cfg.SEED, cfg.MODEL.DEVICE = 7, "cuda"
    (folder / "config.yaml").write_text(cfg.dump())
    arguments = ["--config-file", str(folder / "config.yaml"), "--num-machines", str(machines)]
    arguments += ["--machine-rank", str(rank), "--num-gpus", str(gpus), "--dist-url", f"tcp://127.0.0.1:{port}"]
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    said = os.open(folder / f"said{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(said, number)
    code = 1
    try:
        # Forked, not spawned: they need not import PyTorch again.
        torch.multiprocessing.start_processes = partial(torch.multiprocessing.start_processes, start_method="fork")
        cli(lambda: launch.main([*arguments, *more, "--timeout", str(_TIMEOUT), "MODEL.DEVICE", "cpu"]))
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def processes_of(machine: int) -> list[int]:
    """Ids of the processes that train."""
    return [int(each) for each in Path(f"/proc/{machine}/task/{machine}/children").read_text().split()]


def run(folder: Path, *, gpus: int, iterations: int, victim: int) -> float:
    """Seconds that the other machine took to end."""
    alone, several = folder / "alone", folder / "several"
    alone.mkdir()
    several.mkdir()
    one = start(alone, 0, 1, 2 * gpus, free_port(), iterations)
    assert wait([one], 240) == [0], (alone / "said0.txt").read_text()

    port = free_port()
    machines = [start(several, rank, 2, gpus, port, iterations) for rank in (0, 1)]
    wait(machines, 240, until=lambda: any((several / "out").glob("model_*.pth")))
    stopped = processes_of(machines[victim])[-1]
    os.kill(stopped, signal.SIGSTOP)
    begin = time.monotonic()
    code = wait([machines[1 - victim]], 60)
    took = time.monotonic() - begin
    kill(machines[victim])
    os.kill(stopped, signal.SIGKILL)
    os.waitpid(machines[victim], 0)
    said = (several / f"said{1 - victim}.txt").read_text()
    assert code == [1], f"{code}: {said}"
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "another process is gone, or was silent for longer than --timeout" in error, error

    port = free_port()
    machines = [start(several, rank, 2, gpus, port, iterations, "--resume") for rank in (0, 1)]
    assert wait(machines, 240) == [0, 0], [(several / f"said{rank}.txt").read_text() for rank in (0, 1)]
    ends = [torch.load(each / "out" / "model_final.pth", weights_only=True) for each in (alone, several)]
    assert (found := difference(*ends)) is None, found
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, help="processes of each machine")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--victim", type=int, default=1, help="machine that hangs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        took = run(Path(folder), gpus=args.gpus, iterations=args.iterations, victim=args.victim)
    print(f"the other machine ended after {took:.1f} s; resumed, they end as one machine does, bit for bit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
