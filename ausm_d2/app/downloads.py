# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Downloads: the outputs of ``ausm track``, written by its writers from the records of a session."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av

from ausm_d2.app.clip import Clip
from ausm_d2.app.plan import Plan
from ausm_d2.app.records import Records
from ausm_d2.errors import UserError
from ausm_d2.video.results import OUTPUTS, ResultFolder, check_outputs
from ausm_d2.video.tracked import TrackedFrame, TrackedObject, VideoInfo

PROMPTS = "prompts"
DOWNLOADS = {**OUTPUTS, PROMPTS: "prompts.json: your clicks and boxes, for ausm track --prompts."}
"""What can be downloaded: name -> what it is, for people."""


def shown(objects: list[TrackedObject], plan: Plan) -> list[TrackedObject]:
    """The objects that are neither hidden nor removed, under the user's names."""
    kept = [each for each in objects if each.id not in plan.hidden and each.id not in plan.removed]
    for each in kept:
        each.name = plan.names.get(each.id, each.name)
    return kept


def make_download(
    output: str,
    folder: Path,
    clip: Clip,
    plan: Plan,
    records: Records,
    frames: int,
    classes: list[str],
    progress: Callable[[int], bool],
) -> Path:
    """One file; several are put into an archive.

    Args:
        output: one of ``DOWNLOADS``.
        folder: where the output is written; it must not exist.
        frames: number of frames, from the first one on; frames before the first object have no masks.
        classes: names of the label set.
        progress: called with the number of frames done; False: stop.

    Raises:
        UserError: there is no such output, nothing to write, or it cannot be written.
    """
    if output == PROMPTS:
        folder.mkdir(parents=True)
        (folder / "prompts.json").write_text(json.dumps(plan.to_prompt_file(), indent=1), encoding="utf-8")
        return folder / "prompts.json"
    if not frames:
        raise UserError("nothing was followed yet: run first")
    results = ResultFolder(folder / "results")
    info = VideoInfo(
        name=clip.name,
        height=clip.height,
        width=clip.width,
        fps=clip.fps,
        prompted=plan.find_at is None,
        classes=classes,
    )
    complete = False
    try:
        results.begin(info, check_outputs([output]), key="", settings={}, done=None)
        for frame in clip.frames(0):
            if int(frame.name) >= frames:
                break
            objects = shown(records.get(int(frame.name)), plan)
            results.write(
                TrackedFrame(int(frame.name), frame.name, frame.time, f"{frame.name}.jpg", objects, frame.image)
            )
            if not progress(int(frame.name) + 1):
                raise UserError("stopped")
        complete = True
        results.finish(complete=frames == clip.count)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"cannot be written: {error.strerror}") from None
    finally:
        if not complete and results.frames:
            with suppress(OSError, UserError, av.FFmpegError):
                results.finish(complete=False)  # ends the encoders
    return _one_file(output, folder)


def _one_file(output: str, folder: Path) -> Path:
    """What was made, as one file beside its folder."""
    made = folder / "results"
    shutil.rmtree(made / ".progress", ignore_errors=True)
    files = sorted(path for path in made.rglob("*") if path.is_file())
    if output != "tracks":
        files = [path for path in files if path.name != "tracks.json"]
    if not files:
        raise UserError("no object is in sight in these frames")
    if len(files) == 1 and files[0].parent == made:
        return files[0].rename(folder / files[0].name)
    target = folder / f"{output}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # pictures and videos are compressed already
        for path in files:
            archive.write(path, path.relative_to(made))
    shutil.rmtree(made)
    return target
