#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What ``make demo`` runs: two real clips, found and followed; then a smaller model on drawn videos, scored.

    python demo/make_demo.py                               # demo/clips, then the embedded videos
    python demo/make_demo.py --video path [--prompt png]   # a video of your own: make demo VIDEO=path PROMPT=png

Shape shorthand:
    H, W: frame size in pixels
    T: frames of a video
    S: integer scale
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.config import load_config
from ausm_d2.data.build import get_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.data.views import first_videos
from ausm_d2.engine import Trainer
from ausm_d2.errors import UserError, cli
from ausm_d2.evaluation.results import Output, ResultFolder
from ausm_d2.evaluation.tracks import true_masks
from ausm_d2.jobs.prompt_file import read_prompts
from ausm_d2.jobs.track import Request, track
from ausm_d2.masks.rle import Rle, decode
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.video.inputs import open_source
from ausm_d2.video.movie import MovieWriter
from ausm_d2.visualization import contact_sheet, draw_masks, readable_scale

_ROOT = Path(__file__).resolve().parents[1]
_NANO = _ROOT / "configs" / "synth" / "ausm_nano.yaml"
_EDGE = _ROOT / "configs" / "edge" / "ausm_edge.yaml"
_CLIPS = _ROOT / "demo" / "clips"  # CC BY 4.0 (NOTICE); beside each <name>.mp4 lies <name>.png, its first mask
_METRICS = _ROOT / "docs" / "weights" / "ausm_nano_metrics.json"
_FPS = 8
_SHOWN_SCORE = 0.3  # tracks with a lower score are evaluated but not drawn
_SHEET_FRAMES = 6
_CLIP_FRAMES = 4  # of the sheet of the real clips
_CLIP_WIDTH = 448  # pixels, there


def user_video(video: str, prompt: str | None) -> int:
    """Run demo.py on a user's video, with the model for real video; returns its exit code."""
    command = [sys.executable, str(Path(__file__).with_name("demo.py")), "--config-file", str(_EDGE)]
    command += ["--input", video, "--output", str(Path("output", "video", Path(video).stem))]
    command += ["--prompt-masks", prompt] if prompt else []
    return subprocess.run(command).returncode


def real_clips(cfg: CfgNode, folder: Path, clips: Path = _CLIPS) -> None:
    """Find and follow everything in each clip, and follow what its first mask marks; videos and a contact sheet.

    Raises:
        UserError: a clip, its mask or the weights are missing.
    """
    begin, predictor, sheet = time.monotonic(), VideoPredictor(cfg), []
    titles, frames = [], 0
    for clip in sorted(clips.glob("*.mp4")):
        mask = clip.with_suffix(".png")
        for kind, title, prompts in (
            ("found", "nothing given", {}),
            ("followed", "given: the masks in the first frame", {0: read_prompts(str(mask))}),
        ):
            output = folder / f"{clip.stem}_{kind}"
            print(f"{clip.name}, {title} ...", flush=True)
            request = Request(source=str(clip), output=output, prompts=prompts, given_by=str(mask), find=not prompts)
            frames += track(lambda: predictor, request).frames
            sheet.append(_few(output / "overlay.mp4"))
            titles.append(f"{clip.name}, {title}")
    if not sheet:
        raise UserError(f"{clips}: expected videos (*.mp4), found none")
    cv2.imwrite(str(folder / "sheet.jpg"), contact_sheet(sheet, titles), [cv2.IMWRITE_JPEG_QUALITY, 85])
    seconds = time.monotonic() - begin
    print(f"\nReal clips: {frames} frames in {seconds:.0f} seconds. Videos: {folder}/*/overlay.mp4")
    print(f"A few frames of each:                                            {folder / 'sheet.jpg'}\n")


def _few(video: Path) -> list[np.ndarray]:
    """Some frames of a video, evenly spaced: uint8 (_, _CLIP_WIDTH, 3), BGR."""
    frames = [frame.image for frame in open_source(video)]
    chosen = np.linspace(0, len(frames) - 1, min(_CLIP_FRAMES, len(frames))).round().astype(int)
    size = _CLIP_WIDTH, round(_CLIP_WIDTH * frames[0].shape[0] / frames[0].shape[1])
    return [cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA) for i in chosen]


Drawn = tuple[dict[int, list[Rle | None]], dict[int, str]]  # masks (T) and label of each id


def drawn_truth(record: VideoRecord, classes: Sequence[str]) -> Drawn:
    """Masks and labels to draw, from a video's annotations."""
    return true_masks(record), {instance.instance_id: classes[instance.category_id] for instance in record.instances}


def drawn_output(output: Output, classes: Sequence[str]) -> Drawn:
    """Masks and labels to draw, from the model's output."""
    if output.objects is not None:
        return output.objects, {object_id: str(object_id) for object_id in output.objects}
    tracks = {track["track_id"]: track for track in output.best_classes() if track["score"] >= _SHOWN_SCORE}
    masks = {track_id: track["segmentations"] for track_id, track in tracks.items()}
    return masks, {i: f"{i} {classes[track['category_id']]} {track['score']:.2f}" for i, track in tracks.items()}


def draw(record: VideoRecord, frame: int, drawn: Drawn, scale: int) -> np.ndarray:
    """One frame with its masks: uint8 (S * H, S * W, 3), BGR."""
    masks, labels = drawn
    visible = {i: decode(rle) for i, of in masks.items() if (rle := of[frame]) is not None}
    picture = cv2.cvtColor(record.frames[frame], cv2.COLOR_RGB2BGR)
    return draw_masks(picture, [*visible.values()], [*visible], [labels[i] for i in visible], scale=scale)


def draw_video(record: VideoRecord, panels: Mapping[str, Drawn], folder: Path) -> None:
    """Write a video of all panels, stacked vertically, and a contact sheet of a few frames."""
    scale = readable_scale(record.height, record.width)
    with MovieWriter(folder / f"{record.name}.mp4", _FPS) as video:
        for frame in range(record.length):
            rows = [[draw(record, frame, drawn, scale)] for drawn in panels.values()]
            video.write(contact_sheet(rows, list(panels)))
    shown = np.linspace(0, record.length - 1, min(_SHEET_FRAMES, record.length)).round().astype(int)
    rows = [[draw(record, int(frame), drawn, max(1, scale // 2)) for frame in shown] for drawn in panels.values()]
    titles = [f"{title}: frames {', '.join(str(frame) for frame in shown)}" for title in panels]
    cv2.imwrite(str(folder / f"{record.name}.png"), contact_sheet(rows, titles))


def draw_curve(metrics: Path, path: Path, title: str = "Learning on synthvis_train") -> None:
    """Plot the mask losses and intermediate scores of a training, from Detectron2's ``metrics.json``.

    Without classification losses: their weight, and thus the total, may differ between the stages of a training.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    figure = Figure(figsize=(9, 5), layout="constrained")
    left = figure.subplots()
    for rows, colour in (("trk", "tab:blue"), ("det", "tab:orange")):
        for kind, style in (("dice", "-"), ("mask", ":")):
            points = [(line["iteration"], value) for line in lines if (value := line.get(f"loss_{rows}_{kind}"))]
            label = f"{'tracking' if rows == 'trk' else 'detection'}, {'dice' if kind == 'dice' else 'cross-entropy'}"
            left.plot(*zip(*points, strict=True), style, color=colour, label=label)
    for before, after in pairwise(lines):
        if before.get("stage") != after.get("stage"):
            left.axvline(after["iteration"], color="0.7")
    left.set(xlabel="iteration", ylabel="loss of the masks", ylim=(0, None), title=title)
    for ending, label, colour in (("segm/AP", "AP, unprompted", "tab:green"), ("vos/J&F", "J&F, prompted", "tab:red")):
        # data set / measure / name; keys of references have one more part
        keys = {key for line in lines for key in line if key.endswith(ending) and key.count("/") <= 2}
        points = [(line["iteration"], line[key]) for line in lines for key in keys if key in line]
        if points:
            right = left.twinx()
            right.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
            right.set(ylabel="score on synthvis_val, percent", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def embedded_videos(cfg: CfgNode, count: int) -> None:
    """Evaluate and draw the embedded videos; everything is written to ``OUTPUT_DIR``.

    Raises:
        UserError: if weights are missing or do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty; the demo needs a trained model")
    begin, output = time.monotonic(), Path(cfg.OUTPUT_DIR)
    originals = list(cfg.DATASETS.TEST)
    cfg.DATASETS.TEST = [first_videos(name, count) for name in originals]
    model = Trainer.build_model(cfg)
    AUSMCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    print(f"Segmenting {count} videos of each of {', '.join(originals)}, frame by frame ...", flush=True)
    Trainer.test(cfg, model)
    print(f"\n{(output / 'table.md').read_text(encoding='utf-8')}")
    print(f"(The first {count} videos only; the README has the table of all, and docs/weights.md how it was made.)\n")

    folder = output / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    titles = {"vis": "found without prompts", "vos": "first masks given"}
    panels: dict[str, dict[str, Drawn]] = {}
    for name in cfg.DATASETS.TEST:
        metadata, results = MetadataCatalog.get(name), ResultFolder(output / "inference" / name / "videos")
        for record in get_records(name):
            of_video = panels.setdefault(record.name, {"truth": drawn_truth(record, metadata.thing_classes)})
            of_video[titles[metadata.task]] = drawn_output(results.read(record), metadata.thing_classes)
    for record in get_records(cfg.DATASETS.TEST[0]):
        draw_video(record, panels[record.name], folder)
    print(f"Videos and contact sheets (truth, without prompts, with prompts): {folder}/*.mp4, *.png")
    if _METRICS.is_file():
        draw_curve(_METRICS, output / "curve.png")
        print(f"How it was learned:                                              {output / 'curve.png'}")
    else:
        print(f"No picture of the learning: {_METRICS.relative_to(_ROOT)} is not here")
    print(f"{time.monotonic() - begin:.0f} seconds. Your own video: make demo VIDEO=path [PROMPT=mask.png]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", metavar="PATH", help="a video of your own, instead of the embedded ones")
    parser.add_argument("--prompt", metavar="PNG", help="with --video: objects in its first frame, pixel = object id")
    parser.add_argument("--count", type=int, default=6, metavar="N", help="embedded videos (%(default)s)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to change"
    )
    args = parser.parse_args()
    if args.prompt and not args.video:
        raise UserError("--prompt (PROMPT=...) needs --video (VIDEO=...)")
    if args.video:
        return user_video(args.video, args.prompt)
    real_clips(load_config(str(_EDGE)), Path("output", "demo", "clips"))
    embedded_videos(load_config(str(_NANO), ["OUTPUT_DIR", "output/demo", *args.opts]), args.count)
    return 0


if __name__ == "__main__":
    cli(main)
