# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""All configuration keys of the project, with units and sources.

"paper" is arXiv 2508.19242. Keys of Mask2Former and the VIS projects keep their names and meanings.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_ausm_config(cfg: CfgNode) -> None:
    """Add the keys of AUSM to a Detectron2 config (in place)."""
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]  # ImageNet
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]
    _add_backbone_keys(cfg)
    _add_model_keys(cfg)
    _add_training_keys(cfg)
    _add_input_keys(cfg)
    _add_test_keys(cfg)


def _add_backbone_keys(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # Detectron2's default is 2; for ResNets and timm models
    # Swin, with Mask2Former's names. Values: Swin-T.
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7  # tokens
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    # Any `features_only` model of timm (MODEL.BACKBONE.NAME: build_timm_backbone), its batch norms frozen.
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.MODEL.AUSM = ausm = CfgNode()
    ausm.HIDDEN_DIM = 256  # D (paper, Sec. 3)
    ausm.NUM_ID = 100  # N_id: ID vectors in the pool B (paper)
    # One classifier per label set: [[name, number of classes or list of their names], ...] (paper, Sec. 3
    # "Classification").
    ausm.LABEL_SETS = [["object", 1]]
    # Label set whose classifier scores prompted rows (docs/deviations.md, 5).
    ausm.PROMPT_LABEL_SET = "object"
    # "frame": a mask prompted at frame k enters M_k and is tracked from k + 1. "zero": Alg. 1's letter: a mask prompted
    # at the first frame is M_0, marked on X_0, and the first frame itself is predicted (docs/deviations.md, 2).
    ausm.PROMPT_INDEX = "frame"
    # Initialisation. "lookup": queries attend to keys that resemble them (for training from random weights).
    # "residual": on the first frame, unprompted, the model equals Mask2Former (for training from its weights);
    # docs/deviations.md, 15.
    ausm.START = "lookup"
    # r: keys and values of the spatial attentions in Compressor and Decoder are pooled r x r; 1 = the paper.
    ausm.SPATIAL_REDUCTION = 1
    # Kernels of scan, causal convolution, attention and deformable attention (ausm_d2/kernels/__init__.py): "auto";
    # "reference" (plain PyTorch); "cpu" (C++), "triton" or "mamba_ssm", an error if it is unavailable.
    # The environment variable AUSM_KERNELS overrides this.
    ausm.KERNELS = "auto"

    ausm.FRAME_ENCODER = CfgNode()
    # Outputs of the backbone, of strides 4, 8, 16, 32; the coarsest may be left out. Backbones have different names for
    # them: p2 to p5 in Detectron2's build_resnet_fpn_backbone.
    ausm.FRAME_ENCODER.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    ausm.FRAME_ENCODER.ENC_LAYERS = 6  # deformable encoder layers; 0: top-down sums (light models)
    ausm.FRAME_ENCODER.NUM_HEADS = 8
    ausm.FRAME_ENCODER.DIM_FEEDFORWARD = 1024
    # What is frozen: "none", "backbone" (stage 3 of the paper's recipe) or "encoder" (everything). Works for any
    # backbone; Detectron2's MODEL.BACKBONE.FREEZE_AT freezes single stages of backbones that support it.
    ausm.FRAME_ENCODER.FREEZE_AT = "none"

    ausm.COMPRESSOR = CfgNode()
    ausm.COMPRESSOR.LAYERS = 6  # paper
    ausm.COMPRESSOR.HEAD_DIM = 64  # channels of an attention head
    ausm.COMPRESSOR.DIM_FEEDFORWARD = 1024
    ausm.COMPRESSOR.D_STATE = 16  # Mamba

    ausm.DECODER = CfgNode()
    ausm.DECODER.LAYERS = 6  # paper
    ausm.DECODER.HEAD_DIM = 64
    ausm.DECODER.DIM_FEEDFORWARD = 1024
    ausm.DECODER.SELF_ATTENTION = True  # over X_t; off in light models

    ausm.PIXEL_DECODER = CfgNode()
    ausm.PIXEL_DECODER.LAYERS = 9  # Mask2Former
    ausm.PIXEL_DECODER.HEAD_DIM = 32
    ausm.PIXEL_DECODER.DIM_FEEDFORWARD = 2048
    ausm.PIXEL_DECODER.MEMORY_STRIDES = [32, 16, 8]  # memory levels; the layers cycle through them
    ausm.PIXEL_DECODER.NUM_DET = 100  # N_det: detection queries V (paper)
    # "learned": V is learned (paper). "proposals": V is made from the best cells of the frame (docs/deviations.md, 22).
    ausm.PIXEL_DECODER.QUERIES = "learned"


def _add_training_keys(cfg: CfgNode) -> None:
    # Mask2Former's loss, with its key names.
    cfg.MODEL.MASK_FORMER = CfgNode()
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHT = 2.0
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 5.0
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 5.0
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1  # for rows of V; 1 for rows of A (docs/deviations.md, 4)
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Fraction of the points drawn around the object, so that small objects are sampled (docs/deviations.md, 9).
    cfg.MODEL.MASK_FORMER.BOX_POINT_RATIO = 0.0

    cfg.MODEL.AUSM.TRAIN = train = CfgNode()
    # "parallel": all frames of a clip at once, teacher forced (Alg. 2). "iterative": the same function frame by frame
    # (Fig. 4's baseline). "rollout": frame by frame on the model's own masks.
    train.MODE = "parallel"
    # "parallel": maximum number of passes that replace the history by the model's own masks; drawn uniformly from 0 to
    # this per batch (docs/deviations.md, 10). 0 = the paper.
    train.OWN_PASSES = 0
    # Rows of A whose object is hidden in frame t - 1. "keep": stay in A_{t-1} with an empty mask, as at inference.
    # "leave": are removed from A_{t-1} (the paper's letter; docs/deviations.md, 1).
    train.HIDDEN_ROWS = "keep"
    # Objects that cover fewer stride-4 cells are ignored in detection: no targets, no background. 0: none is ignored.
    train.DETECT_CELLS = 0
    train.PROMPT_PROB = 0.5  # probability that a clip is prompted: s_i is the first visible frame
    # Weight of a per-pixel classification loss on X_t, for frame encoders trained from random weights; 0 = the paper.
    train.FRAME_CLASS_WEIGHT = 0.0
    train.CHECKPOINTING = False  # recompute activations in the backward pass (backbones: Swin only)
    # History noise: probabilities per row and frame of M (docs/deviations.md, 10).
    train.HISTORY_NOISE = CfgNode()
    train.HISTORY_NOISE.ENABLED = True
    train.HISTORY_NOISE.MORPHOLOGY = 0.3  # erode or dilate by one cell of stride 4
    train.HISTORY_NOISE.SHIFT = 0.2
    train.HISTORY_NOISE.MAX_SHIFT = 2  # cells of stride 4
    train.HISTORY_NOISE.DROP = 0.1
    train.HISTORY_NOISE.SWAP = 0.02  # with another row

    # Exponential moving average of the weights: saved in every checkpoint, used in evaluation.
    cfg.MODEL_EMA = CfgNode({"ENABLED": False, "DECAY": 0.999})

    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone, times BASE_LR
    # [[prefix, factor], ...]: the same for parameters whose names begin so, such as ["pixel_decoder.", 0.1]; the first
    # prefix that fits counts. 0: they are not trained.
    cfg.SOLVER.MULTIPLIERS = []
    # A step whose loss or gradients are not finite is not taken; it is reported, its batch saved. "stop": the training
    # ends with that; "skip": it goes on, unless ten steps in a row are so.
    cfg.SOLVER.NON_FINITE = "stop"


def _add_input_keys(cfg: CfgNode) -> None:
    # Clips, with the key names of Mask2Former-video and VITA. Only labelled frames are counted.
    cfg.INPUT.SAMPLING_FRAME_NUM = 5  # T: frames of a training clip
    cfg.INPUT.SAMPLING_FRAME_NUMS = []  # one per data set of DATASETS.TRAIN; empty: SAMPLING_FRAME_NUM for all
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20  # frames to either side of a random frame
    cfg.INPUT.SAMPLING_FRAME_RANGES = []  # one per data set of DATASETS.TRAIN; empty: SAMPLING_FRAME_RANGE for all
    # 0: frames drawn at random from that range. k: evenly spaced frames, 1 to k apart, drawn per clip.
    cfg.INPUT.SAMPLING_FRAME_STRIDE = 0
    cfg.INPUT.SAMPLING_FRAME_REVERSE = 0.0  # probability of reversing a clip
    # Maximum number of instances per clip (and never more than MODEL.AUSM.NUM_ID). Of more, a random subset of this
    # size is kept; the rest counts as unlabelled, not as background.
    cfg.INPUT.MAX_INSTANCES = 100
    # Clip-wise augmentation: "brightness", "contrast", "saturation" (factors in 0.9..1.1), "rotation" (+-15 degrees),
    # "crop_scale" (pan and zoom), "warp" (smooth deformation); in addition to INPUT.RANDOM_FLIP and Detectron2's sizes.
    cfg.INPUT.AUGMENTATIONS = []
    # Degradation of whole clips, as by poor cameras: GREY, probability of greyscale; PROB, probability of some of
    # contrast, brightness, blur, low resolution, noise and JPEG (ranges: ausm_d2/data/augmentation/looks.py).
    cfg.INPUT.LOOKS = CfgNode({"PROB": 0.0, "GREY": 0.0})
    # With probability PROB, shrink the frames inside their canvas, to SMALLEST of their sides at least: small objects.
    cfg.INPUT.SHRINK = CfgNode({"PROB": 0.0, "SMALLEST": 0.25})
    # Probability that a clip is prompted by boxes, clicks or scribbles; its first frame is then shown twice.
    cfg.INPUT.DRAWN_PROMPTS = 0.0
    cfg.INPUT.CROP.PROB = 0.5  # probability of the crop, if INPUT.CROP.ENABLED (VITA, as the two below)
    cfg.INPUT.CROP.RESIZE = [400, 500, 600]  # short side before the crop, pixels
    cfg.INPUT.CROP.DRIFT = 0.0  # maximum shift of the crop window over a clip, relative to its size (VITA: any)

    # Pseudo-videos: clips made from one image (data sets with task "image"), with VITA's key names.
    cfg.INPUT.PSEUDO = pseudo = CfgNode()
    pseudo.AUGMENTATIONS = ["rotation"]
    pseudo.MIN_SIZE_TRAIN = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768)  # short side, pixels
    pseudo.MAX_SIZE_TRAIN = 768
    pseudo.MIN_SIZE_TRAIN_SAMPLING = "choice_by_clip"
    pseudo.CROP = CfgNode({"ENABLED": False, "TYPE": "absolute_range", "SIZE": [384, 600]})
    pseudo.COPY_PASTE = 0.0  # probability of pasting objects of another image, with their own motion
    pseudo.PASTE_SCALE = 0.4  # minimum size of the pasted image, relative to the largest that fits
    pseudo.PASTE_TWIN = 0.0  # probability of pasting the image's own objects, as look-alikes
    # Large-scale jitter instead of the sizes above (Mask2Former's COCO recipe).
    cfg.INPUT.LSJ_AUG = CfgNode({"ENABLED": False, "IMAGE_SIZE": 1024, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0})

    # Relative sampling weight of each data set of DATASETS.TRAIN; empty: its number of videos.
    cfg.DATASETS.DATASET_RATIO = []
    # Data sets of DATASETS.TRAIN that are not used, with their DATASET_RATIO, SAMPLING_FRAME_RANGES and _NUMS.
    cfg.DATASETS.LEAVE_OUT = []
    # [[data set, label set], ...]: overrides the data set's own label set (docs/deviations.md, 5).
    cfg.DATASETS.LABEL_SETS = []
    # Your own data sets, [[name, annotation file, image folder], ...] and [[name, image folder, mask folder], ...].
    # Paths are absolute or relative to DETECTRON2_DATASETS (datasets/README.md).
    cfg.DATASETS.YTVIS_STYLE = []
    cfg.DATASETS.DAVIS_STYLE = []
    # [[name, annotation file, image folder, label set, exhaustive], ...] in COCO's format, and images with mask files,
    # [[name, image folder, mask folder, label set, exhaustive], ...]; label set and exhaustive are optional.
    cfg.DATASETS.COCO_STYLE = []
    cfg.DATASETS.MASKED_IMAGES = []


def _add_track_rules(test: CfgNode) -> None:
    """Rules of unprompted tracks (ausm_d2/streaming/gates.py)."""
    # An unprompted row with a lower foreground probability counts as hidden in the frame: its mask is not returned and
    # not in M. 0 = the paper: off.
    test.HIDE_BELOW = 0.0
    # A detection whose mask IoU with a tracked row exceeds this does not start a track. 1 = the paper: off.
    test.BIRTH_IOU = 1.0
    test.BIRTH_CELLS = 0  # nor does one whose mask has fewer cells of stride 4. 0 = the paper: off
    # Of two tracked masks, or two detections, of which more than this part of the smaller one lies in the other, the
    # less confident one ends, if it was not given. 1 = the paper: off.
    test.DUPLICATE_OVERLAP = 1.0
    # A cell that several tracks claim, found or given, belongs to the one with the largest logit. False = the paper.
    test.EXCLUSIVE = False
    # Parts of a found track's mask that are farther from its mask in the frame before than this many square roots of
    # that mask's area (4 cells at least) are cut: it cannot spread or jump onto what comes in. Of a detection, and of
    # a track that comes back, parts that are as far from the largest one are cut. A large part four times as far away
    # is a detection of its own.
    # 0 = the paper: off.
    test.REACH = 0.0
    # The mask of a found track is hidden if the mean of X_t in it has a lower cosine similarity with that of its masks
    # before: it has jumped to another object. For one that was hidden for 5 frames, (1 + APPEARANCE) / 2 is needed.
    # 0 = the paper: off.
    test.APPEARANCE = 0.0
    # A found track is returned from this age on, in frames, and ends if it is hidden before; but at once if its
    # foreground probability was AT_ONCE or more when it was found. 1 = the paper: off.
    test.MIN_AGE = 1
    test.AT_ONCE = 1.0


def _add_test_keys(cfg: CfgNode) -> None:
    # Skip data sets of DATASETS.TEST whose files are missing, with a warning; False: an error.
    cfg.TEST.SKIP_MISSING = False
    cfg.TEST.AUSM = test = CfgNode()
    test.FG_THRESHOLD = 0.5  # foreground probability from which a row of V becomes a track (paper, Sec. 4)
    test.FG_THRESHOLDS = []  # [[data set, threshold], ...]: overrides (Table 3: 0.9 for COCO)
    # Predictions kept per video; 0: the data set's value: 10 for YouTube-VIS, 20 for OVIS (paper, Sec. 4), 100 for COCO
    # images. A VideoPredictor then returns 10 detected objects per frame.
    test.TOPK = 0
    # "video": the best (track, class) pairs of a video; "frame": the paper's instances per frame (deviations, 12).
    test.TOPK_SCOPE = "video"
    # Score of a track. "mean": mean class probability over all frames since its start, including hidden ones;
    # "visible": over the frames where it is visible; "mask": as "mean", each frame weighted by the mean foreground
    # probability inside the mask (Mask2Former); "max": maximum over frames (GenVIS). Measurements: docs/experiments.md.
    test.TRACK_SCORE = "mean"
    _add_track_rules(test)
    test.LABEL_SET = ""  # label set of VideoPredictor's detections; empty: the first of MODEL.AUSM.LABEL_SETS
    # bfloat16 autocast in streaming and evaluation. On CUDA the weights of norms and embeddings are rounded too.
    test.AMP = False
    # dtype in which the state of a stream is stored between frames: "float32", or "bfloat16", which takes half the
    # memory (docs/benchmarks.md).
    test.STATE_DTYPE = "float32"
    test.CUDA_GRAPH = False  # capture a stream's step in a CUDA graph at its second frame; CUDA only
    test.RESUME = False  # skip videos that already have results in OUTPUT_DIR
    # Evaluation uses every n-th frame of a video only, from the first on: cheap enough to run during training
    # (TEST.EVAL_PERIOD). Not for figures to compare with others.
    test.EVERY_NTH = 1
    test.J_BY_AREA = False  # prompted: also J by the object's area in the frame
    # Number of times the input is played (Table 3): images as a still video, videos forward, backward, forward, ..;
    # the last one counts.
    test.REPEAT = 1
    test.SPATIAL_TRAVERSAL = False  # images: the image, four 90 % crops around it, the image again (Appendix A)
    # If the smallest object prompted at the first frame covers fewer than this many cells of stride 4 (0: off),
    # INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are enlarged, by at most half.
    test.SMALL_PROMPT_CELLS = 0
    test.SEED = 0  # of the Sampler of ID vectors
    test.TRACKING = False  # unprompted: also compute HOTA and track mAP with the package trackeval
    # Also score the references (first mask copied, optical flow, per-frame detection with IoU linking).
    test.BASELINES = False
