#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tracks many videos on a Ray cluster, as ``ausm track FOLDER --workers N`` does on one machine.

    python -m tools.batch_ray videos/ -o results/ --workers 2
    python -m tools.batch_ray s3://bucket/videos -o s3://bucket/results --workers 64 --gpus 1 --address auto

A video is a row of a Ray data set; each actor holds a predictor. If an actor dies, its row is retried on another one,
up to --retries times. Every video has one result, written under a temporary name and committed last
(ausm_d2/jobs/store.py). Running the command again skips committed videos, also after the driver was killed. The
report is that of ``ausm track``. Extra: pip install 'ausm_d2[ray]'; ausm_d2 must be installed on all machines.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ausm_d2.cli.arguments import given_path
from ausm_d2.errors import UserError, cli
from ausm_d2.jobs.report import REPORT, Report, Row
from ausm_d2.jobs.store import ResultStore, open_file_system

Work = Callable[[str, Path], Row]
"""Tracks a video (name, folder of its results); errors are in the row."""
MakeWork = Callable[[], Callable[[str, str, Path], Row]]

_WRITE = 5.0  # seconds between two writes of the report


class Tracking:
    """Makes a function that tracks one video; pickled to the actors."""

    def __init__(self, config: str, changes: list[Any], save: list[str], frames: int | None, threads: int) -> None:
        self._arguments = config, changes, save, frames, threads

    def __call__(self) -> Callable[[str, str, Path], Row]:
        """Load the model; the function takes name, path on this machine, and folder of the results."""
        import torch

        from ausm_d2.cli.model import config
        from ausm_d2.jobs.folder import track_one_of_many
        from ausm_d2.jobs.track import Request
        from ausm_d2.streaming.predictor import VideoPredictor

        name_of_config, changes, save, frames, threads = self._arguments
        torch.set_num_threads(threads)
        predictor = VideoPredictor(config(name_of_config, changes))

        def work(name: str, path: str, folder: Path) -> Row:
            asked = Request(source=path, output=folder, save=save, frames=frames)
            return track_one_of_many(predictor, name, asked, lambda: False)

        return work


class Actor:
    """The function that Ray applies to each row; one instance per actor."""

    def __init__(self, make_work: MakeWork, out: str) -> None:
        self._work = make_work()
        self._store = ResultStore(out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [self._one(str(name), str(path)) for name, path in zip(batch["name"], batch["path"], strict=True)]
        return {key: [asdict(row)[key] for row in rows] for key in asdict(rows[0])}

    def _one(self, name: str, path: str) -> Row:
        earlier = self._store.committed(name)
        if earlier is not None:
            return earlier
        with tempfile.TemporaryDirectory() as scratch:
            local, folder = path, Path(scratch) / "out"
            if "://" in path:
                fs, there = open_file_system(path)
                local = str(Path(scratch) / Path(there).name)
                try:
                    fs.get_file(there, local)
                except OSError as error:
                    return Row(name, "failed", error=f"'{path}' cannot be read: {error}")
            row = self._work(name, local, folder)
            return self._store.commit(row, folder) if row.status == "done" else row


def videos_below(text: str, out: str) -> dict[str, str]:
    """Paths or addresses of the videos, by the names of their results.

    Raises:
        UserError: if there are none.
    """
    from ausm_d2.jobs.folder import MOVIES, find_videos

    if "://" not in text:
        local = Path(out) if "://" not in out else Path("/nowhere")
        found = find_videos(text, local)
        if found is None:
            raise UserError(f"'{text}' is one video; a folder of videos expected")
        return {name: str(path.resolve()) for name, path in found.items()}
    fs, root = open_file_system(text)
    files = sorted(path for path in fs.find(root) if path.lower().endswith(MOVIES))
    if not files:
        raise UserError(f"'{text}' holds no videos ({' '.join(MOVIES)})")
    protocol = text.partition("://")[0]
    return {path[len(root) :].lstrip("/"): f"{protocol}://{path.lstrip('/')}" for path in files}


def track_on_ray(
    videos: dict[str, str], out: str, make_work: MakeWork, *, workers: int, cpus: float, gpus: float, retries: int
) -> Report:
    """Track the videos that are not committed yet.

    Args:
        videos: paths or addresses by name.
        out: where the results go.
        make_work: called once in every actor.
        workers: number of actors.
        cpus, gpus: per actor.
        retries: how often a video is retried after its actor died.

    Raises:
        UserError: Ray is not installed, or the cluster never has room for an actor.
    """
    store = ResultStore(out)
    store.discard_attempts()
    report = Report(list(videos), store.write)
    for name in videos:
        row = store.committed(name)
        if row is not None:
            report.rows[name] = row
    left = {name: path for name, path in videos.items() if name not in report.rows}
    written = 0.0
    for row in _rows(left, out, make_work, workers=workers, cpus=cpus, gpus=gpus, retries=retries) if left else ():
        report.rows[row.video] = row
        if time.monotonic() - written > _WRITE:  # its size grows with the number of videos
            report.write()
            written = time.monotonic()
    for name in left:
        if name not in report.rows:
            lost = Row(name, "failed", error=f"its actor ended each of {retries + 1} times")
            report.rows[name] = store.committed(name) or lost
    report.write()
    return report


def _rows(
    videos: dict[str, str], out: str, make_work: MakeWork, *, workers: int, cpus: float, gpus: float, retries: int
) -> Iterator[Row]:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("ray is not installed; pip install 'ausm_d2[ray]'") from None

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a video that kills every actor must not stop the others
    context.enable_progress_bars = False
    items = [{"name": name, "path": path} for name, path in videos.items()]
    actors = min(workers, len(items))
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Actor,
        fn_constructor_args=(make_work, out),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=retries,
    )
    for entry in data.iter_rows():
        yield Row(**{key: value.item() if hasattr(value, "item") else value for key, value in entry.items()})


def start_ray(address: str | None, cpus: float | None = None) -> None:
    """Connect to a cluster; None: start one on this machine, with ``cpus`` CPUs.

    Raises:
        UserError: Ray is not installed, or the cluster does not exist.
    """
    try:
        import ray
    except ImportError:
        raise UserError("ray is not installed; pip install 'ausm_d2[ray]'") from None
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options.update(num_cpus=cpus, include_dashboard=False)
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises plain ones when a node does not start
        where = f"--address {address}" if address else "Ray on this machine"
        raise UserError(f"{where}: {(str(error).splitlines() or ['does not start'])[0]}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command; returns the exit code: 1 if a video failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="folder of videos, or its address (s3://...)")
    parser.add_argument(
        "-o", "--output", required=True, type=given_path, metavar="DIR", help="folder for the results, or its address"
    )
    parser.add_argument("--config", default="ausm_edge", metavar="NAME", help="as of ausm track (default: %(default)s)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change")
    parser.add_argument("--save", nargs="+", default=["masks"], metavar="OUTPUT", help="as of ausm track")
    parser.add_argument("--frames", type=int, metavar="N", help="stop each video after N frames")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="actors (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of each actor (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="N", help="of each actor, such as 1 or 0.5")
    parser.add_argument("--retries", type=int, default=3, metavar="N", help="of a lost video (default: %(default)s)")
    parser.add_argument("--address", metavar="ADDRESS", help="of the cluster; 'auto' on one of its machines")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for name in ("workers", "cpus"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)}, expected 1 or more")
    videos = videos_below(options.input, options.output)
    changes = [*options.opts, "MODEL.DEVICE", "cuda" if options.gpus else "cpu"]
    work = Tracking(options.config, changes, options.save, options.frames, options.cpus)
    start_ray(options.address, options.workers * options.cpus)
    report = track_on_ray(
        videos,
        options.output,
        work,
        workers=options.workers,
        cpus=options.cpus,
        gpus=options.gpus,
        retries=options.retries,
    )
    print(report.table())
    print(f"{report.count('done')} done, {report.count('failed')} failed: see {options.output}/{REPORT}")
    return 1 if report.count("failed") else 0


if __name__ == "__main__":
    cli(main)
