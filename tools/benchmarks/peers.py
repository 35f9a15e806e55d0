# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Time per frame against SAM 2.1 Tiny and VidEoMT-S (transformers, random weights): same size, threads and dtype."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.streaming.inference import prepare_for_inference
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from tools.benchmarks import measure
from tools.benchmarks.model import random_model
from tools.benchmarks.stream import noise, prompted, squares

SAM2, VIDEOMT = "SAM 2.1 Tiny", "VidEoMT-S"
_CONFIGS = ["configs/paper/stage3_long_swin_t.yaml", "configs/edge/ausm_edge.yaml", "configs/synth/ausm_nano.yaml"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measure.add_device_arguments(parser)
    parser.add_argument("--config-file", nargs="+", default=_CONFIGS, help="of this project")
    parser.add_argument("--peers", nargs="*", choices=[SAM2, VIDEOMT], default=[SAM2, VIDEOMT])
    parser.add_argument(
        "--size", type=measure.positive, default=256, help="side of the square frame, pixels; a multiple of 32"
    )
    parser.add_argument("--objects", type=measure.positive, nargs="*", default=[1, 5, 10])
    parser.add_argument("--repeats", type=measure.positive, default=5, help="measured frames of each, alternating")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median and quartiles (ms) of one frame, from pixels to mask logits at stride 4, and the ratio of SAM 2's time.

    Prompted: all models track the same objects; SAM 2's memory of seven frames is full before the measurement.
    Unprompted: this project's models with detection, and VidEoMT, one frame per call; random weights detect nothing.

    Raises:
        UserError: if transformers or a config is missing.
    """
    device = measure.device_of(args)
    if args.size % 32:
        raise UserError(f"--size {args.size}: expected a multiple of 32")
    if args.peers:
        _transformers()
    ours = measure.by_name(args.config_file)
    for config in ours.values():
        load_config(config)
    rows = []
    for n in args.objects:
        steps = {name: _ours(config, n, args) for name, config in ours.items()}
        if SAM2 in args.peers:
            steps[SAM2] = _sam2(n, args)
        rows += _measured(steps, n, SAM2, args, device)
    if VIDEOMT in args.peers:
        steps = {name: _ours(config, None, args) for name, config in ours.items()}
        rows += _measured({**steps, VIDEOMT: _videomt(args)}, None, VIDEOMT, args, device)
    return {"rows": rows}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot time per frame over number of objects; unprompted models as dashed lines."""
    with measure.picture(path, "objects followed", "seconds a frame") as axes:
        for name in dict.fromkeys(row["model"] for row in figures["rows"]):
            rows = [row for row in figures["rows"] if row["model"] == name and row["objects"] is not None]
            if rows:
                label = name if name == SAM2 else f"AUSM: {name}"
                measure.draw(axes, label, [row["objects"] for row in rows], rows)
        for row in figures["rows"]:
            if row["model"] == VIDEOMT:
                axes.axhline(row["ms"] / 1e3, linestyle="--", color="gray", label=f"{VIDEOMT} (unprompted)")
        axes.set_ylim(bottom=0)


def _measured(
    steps: dict[str, Callable[[], Any]], objects: int | None, peer: str, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
        times = measure.interleaved(steps, args.repeats, device, cpu_time=args.cpu_time)
    rows = []
    for name, seconds in times.items():
        row = {"objects": objects, "model": name, **measure.spread(seconds)}
        if peer in times:
            ratios = (theirs / mine for theirs, mine in zip(times[peer], seconds, strict=True))
            row["peer_over_it"] = statistics.median(ratios)
        rows.append(row)
    measure.print_table(rows)
    return rows


def _ours(config: str, objects: int | None, args: argparse.Namespace) -> Callable[[], Any]:
    """``objects``: number of prompted objects; None: unprompted, with a threshold above all of random weights."""
    opts = ("INPUT.MIN_SIZE_TEST", 0, "TEST.AUSM.AMP", args.amp)
    model = random_model(config, measure.device_of(args), opts).eval()
    settings, size = VideoSettings.from_config(load_config(config, opts)), (args.size, args.size)
    prepare_for_inference(model, settings)
    frame = noise(size)
    if objects is None:
        settings = replace(settings, fg_threshold=1.1)
        stream = Stream(model, settings, label_set=next(iter(model.label_sets)), detect=True)
    else:
        stream = prompted(model, settings, objects, size)
    return lambda: stream.step(frame)


def _sam2(objects: int, args: argparse.Namespace) -> Callable[[], Any]:
    hf, side, device = _transformers(), args.size, measure.device_of(args)
    sizes = [side // 4, side // 8, side // 16]
    torch.manual_seed(0)
    config = hf.Sam2VideoConfig(  # the other defaults are those of SAM 2.1 Tiny
        image_size=side,
        prompt_encoder_config={"image_size": side},
        memory_attention_rope_feat_sizes=[sizes[-1]] * 2,
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [side, side]},
            "backbone_feature_sizes": [[each, each] for each in sizes],
        },
    )
    model = hf.Sam2VideoModel(config).to(device).eval()
    session = hf.Sam2VideoInferenceSession(
        video_height=side, video_width=side, inference_device=device, inference_state_device=device, dtype=torch.float32
    )
    for object_id, mask in squares(objects, (side, side)).items():
        index = session.obj_id_to_idx(object_id)
        session.add_mask_inputs(index, 0, torch.from_numpy(mask)[None, None].float())
        session.obj_with_new_inputs.append(object_id)
    frame = torch.rand(1, 3, side, side, device=device)

    def step() -> None:
        model(session, frame=frame)

    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
        for _ in range(config.num_maskmem):
            step()
    return step


def _videomt(args: argparse.Namespace) -> Callable[[], Any]:
    hf, device = _transformers(), measure.device_of(args)
    torch.manual_seed(0)
    # DINOv2-S; otherwise the defaults of the class.
    config = hf.VideomtConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=args.size)
    model = hf.VideomtForUniversalSegmentation(config).to(device).eval()
    frame = torch.rand(1, 1, 3, args.size, args.size, device=device)
    return lambda: model(pixel_values_videos=frame)


def _transformers() -> Any:
    try:
        import transformers

        transformers.Sam2VideoModel, transformers.VideomtForUniversalSegmentation  # noqa: B018  they load when named
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"peers needs transformers with SAM 2 video and VidEoMT: pip install -e '.[dev]' ({error})"
        ) from None
    return transformers
