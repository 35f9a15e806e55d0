# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Everything of this project that waits for a GPU, in one command that downloads nothing:

    python -m tools.measure_on_gpu [--out output/gpu] [--parts NAME ...] [--hours 2]

A part that fails does not end the others. Figures, logs and a table of the targets go to --out. A part whose figures
are there already is not measured again, so that the command can be repeated after an interruption.

    tests    the tests that need a GPU: Triton's kernels, gradients, CUDA graphs, equal masks
    masks    masks of the shipped models on the CPU and on the GPU
    ssm      scan and step: our Triton kernels, mamba_ssm's where that package is installed, the reference
    stream   Swin-T at 1024 x 1820 and 640 x 360
    train    Swin-B, T = 16, 480 x 864: parallel against iterative
    edge     trains ausm_edge further, for --hours: on DAVIS and COCO where datasets/ has them, else on embedded videos
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ausm_d2.config import load_config
from ausm_d2.data.build import require_files
from ausm_d2.engine import check_datasets
from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write

SWIN_T, SWIN_B = "configs/paper/stage3_long_swin_t.yaml", "configs/paper/stage3_long_swin_b.yaml"
EDGE = "configs/edge/ausm_edge.yaml"
REDUCED, HALF_STATE = "MODEL.AUSM.SPATIAL_REDUCTION 2", "TEST.AUSM.STATE_DTYPE bfloat16"
_STREAM = f"stream --device cuda --amp --cuda-graph --frames 0 --objects 1 --config-file {SWIN_T} --size"
_TRAIN = f"train --device cuda --amp --config-file {SWIN_B} --size 480 864 --frames 16 --memory --variants"

BENCHMARKS = {  # arguments of tools.benchmark, by part and file
    "masks": {
        "masks_nano": "masks",
        "masks_edge": f"masks --config-file {EDGE}",
    },
    "ssm": {"ssm": "ssm --device cuda --dtype bfloat16 --sequences 4096 29184 --frames 4 16"},
    "stream": {
        "stream_1024": f"{_STREAM} 1024 1820 --variants '' '{REDUCED}' '{HALF_STATE}'",
        "stream_360": f"{_STREAM} 360 640",
    },
    "train": {"train": f"{_TRAIN} iterative parallel 'parallel, checkpointed'"},
}
PARTS = ("tests", *BENCHMARKS, "edge")
TESTS = ("tests/kernels", "tests/modeling", "tests/streaming", "tests/test_on_gpu.py")
_CLIPS = 16  # of a batch of ausm_edge
_GRACE = 120  # seconds that a training has to end after it was asked to


class Target(NamedTuple):
    """A row of the table of targets."""

    what: str
    limit: str
    file: str
    figure: Callable[[dict[str, Any]], float]


def _row(table: str, **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def find(figures: dict[str, Any]) -> dict[str, Any]:
        return next(row for row in figures[table] if all(row[key] == value for key, value in values.items()))

    return find


def _ms(variant: str = "") -> Callable[[dict[str, Any]], float]:
    return lambda figures: float(_row("frame", model=f"{Path(SWIN_T).stem} {variant}".strip())(figures)["ms"])


TARGETS = (
    Target("training, T = 16, Swin-B, 480 x 864, parallel over iterative", ">= 2.5 (aim 4)", "train",
           lambda f: float(_row("rows", variant="parallel")(f)["speed_over_iterative"])),
    Target("the same with checkpointing, peak memory, GB", "< 80", "train",
           lambda f: float(_row("rows", variant="parallel, checkpointed")(f)["peak_mb"]) / 1e3),
    Target("Swin-T, 1024 x 1820, streaming, ms", "<= 50", "stream_1024", _ms()),
    Target("the same with SPATIAL_REDUCTION 2, ms", "<= 25", "stream_1024", _ms(REDUCED)),
    Target("the same with a bfloat16 state, ms", "", "stream_1024", _ms(HALF_STATE)),
    Target("Swin-T, 640 x 360, streaming, ms", "<= 6", "stream_360", _ms()),
    Target("step of the scan, Triton, GB/s", ">= 3010 on an H200", "ssm",
           lambda f: float(_row("step", what="triton")(f)["gb_per_s"])),
    Target("the same, mamba_ssm, GB/s", "", "ssm", lambda f: float(_row("step", what="mamba_ssm")(f)["gb_per_s"])),
    Target("ausm_nano, masks on CPU and GPU, smallest IoU", ">= 0.99", "masks_nano",
           lambda f: float(_row("rows", way="cuda:auto")(f)["iou_min"])),
    Target("ausm_edge, masks on CPU and GPU, smallest IoU", ">= 0.99", "masks_edge",
           lambda f: float(_row("rows", way="cuda:auto")(f)["iou_min"])),
)  # fmt: skip


def commands(part: str, out: Path) -> Iterator[tuple[str, list[str], Path | None]]:
    """Name, arguments of Python, and file of figures of every command of a part."""
    if part == "tests":
        yield "tests", ["-m", "pytest", "-q", *TESTS], None
    elif part == "edge":
        yield "edge", ["-W", "ignore", "train_net.py", "--resume", *edge_options(out)], None
    else:
        for name, arguments in BENCHMARKS[part].items():
            figures = out / f"{name}.json"
            yield name, ["-m", "tools.benchmark", *shlex.split(arguments), "--json", str(figures)], figures


def edge_options(out: Path) -> list[str]:
    """Arguments of train_net.py: ausm_edge as its config says, from the shipped weights, on the data that are there."""
    cfg = load_config(EDGE, ["MODEL.DEVICE", "cpu"])
    options = [
        "--config-file",
        EDGE,
        "OUTPUT_DIR",
        str(out / "edge"),
        "MODEL.DEVICE",
        "cuda",
        "SOLVER.AMP.ENABLED",
        "True",
    ]
    options += ["SOLVER.IMS_PER_BATCH", str(_CLIPS), "SOLVER.MAX_ITER", "20000", "SOLVER.WARMUP_ITERS", "500"]
    options += ["SOLVER.CHECKPOINT_PERIOD", "250", "DATALOADER.NUM_WORKERS", "8", "DATASETS.TEST", "()"]
    try:
        check_datasets(cfg, cfg.DATASETS.TRAIN)
        require_files(cfg.DATASETS.TRAIN)
    except UserError as error:
        print(f"edge: the embedded videos take the place of {list(cfg.DATASETS.TRAIN)}: {error}", flush=True)
        options += ["DATASETS.TRAIN", "('synthvis_train',)", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
        options += ["MODEL.AUSM.LABEL_SETS", "[['object', 1], ['coco_super', 12], ['synthvis', 6]]"]
    return options


def run(arguments: list[str], log: Path, seconds: float | None) -> bool:
    """Run Python, copying its output to ``log``; after ``seconds`` it is asked to end. Whether it went well."""
    with log.open("w", encoding="utf-8") as file:
        print(f"$ python {shlex.join(arguments)}", flush=True)
        process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return True
        except BaseException:
            process.kill()
            raise


def table(out: Path) -> str:
    """The targets and what was measured, in Markdown."""
    lines = ["| What | Target | Measured |", "| --- | --- | --- |"]
    for target in TARGETS:
        path, measured = out / f"{target.file}.json", "not measured"
        if path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
            subject = next(key for key in report if key not in ("machine", "arguments"))
            try:
                measured = f"{target.figure(report[subject]):.4g} ({report['machine']['accelerator']})"
            except (StopIteration, KeyError, TypeError):  # a kernel or a size that was left out
                measured = "left out"
        lines.append(f"| {target.what} | {target.limit} | {measured} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output/gpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--hours", type=float, default=2.0, help="of training ausm_edge")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("torch finds no GPU")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in args.parts:
        for name, arguments, figures in commands(part, args.out):
            if figures is not None and figures.is_file():
                print(f"{name}: {figures} is there", flush=True)
                continue
            log = args.out / f"{name}.log"
            if not run(arguments, log, args.hours * 3600 if part == "edge" else None):
                failed.append(name)
                print(f"{name}: failed, see {log}", flush=True)
            with atomic_write(args.out / "targets.md") as path:
                path.write_text(table(args.out), encoding="utf-8")
    print(table(args.out))
    if failed:
        raise UserError(f"failed: {' '.join(failed)}; logs are in {args.out}")


if __name__ == "__main__":
    cli(main)
