# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Every configuration key of the project, with its unit and its source, in one place.

"paper" is arXiv 2508.19242; keys that exist in Mask2Former or the VIS projects keep their names and meanings.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_ausm_config(cfg: CfgNode) -> None:
    """Add the keys of AUSM to a Detectron2 config (in place)."""
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]  # of ImageNet
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]
    _add_backbone_keys(cfg)
    _add_model_keys(cfg)
    _add_training_keys(cfg)
    _add_input_keys(cfg)
    _add_test_keys(cfg)


def _add_backbone_keys(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # Detectron2 has 2; ResNets and timm's models have stages to freeze
    # Swin, with Mask2Former's names. Values: Swin-T.
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7  # tokens
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    # The plain convolutional backbone of the smallest model (MODEL.BACKBONE.NAME: build_convnet_backbone).
    cfg.MODEL.CONVNET = CfgNode({"WIDTH": 32})  # channels of the stages: 1, 2, 4 and 4 times this
    # Any `features_only` model of timm (MODEL.BACKBONE.NAME: build_timm_backbone).
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.TIMM.FREEZE_NORM = True  # batch norms keep their statistics and scales


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.MODEL.AUSM = ausm = CfgNode()
    ausm.HIDDEN_DIM = 256  # D (paper, Sec. 3)
    ausm.NUM_ID = 100  # N_id: ID vectors in the pool B (paper)
    # One classifier per label set: [[name, number of classes], ...] (paper, Sec. 3 "Classification").
    ausm.LABEL_SETS = [["object", 1]]
    # Head that scores prompted rows (docs/deviations.md, 5).
    ausm.PROMPT_LABEL_SET = "object"
    # "frame": a mask given at frame k enters M_k and is tracked from k + 1. "zero": Alg. 1's letter, a mask given at
    # the first frame is M_0, marked on X_0, and the first frame itself is predicted (docs/deviations.md, 2).
    ausm.PROMPT_INDEX = "frame"
    # Before training. "lookup": attentions look for what resembles a query (for models from random weights).
    # "residual": the unprompted first frame is what Mask2Former predicts of it (for models from its weights);
    # docs/deviations.md, 15.
    ausm.START = "lookup"
    # Keys and values of the spatial attentions of Compressor and Decoder are pooled r x r; 1 = the paper.
    ausm.SPATIAL_REDUCTION = 1
    # Kernels of scan, causal convolution, attention and deformable attention (ausm_d2/kernels/__init__.py): "auto";
    # "reference", PyTorch's operations; "cpu" (C++), "triton" or "mamba_ssm" by name, an error where it cannot run.
    # The environment variable AUSM_KERNELS overrides this.
    ausm.KERNELS = "auto"

    ausm.FRAME_ENCODER = CfgNode()
    ausm.FRAME_ENCODER.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # strides 4, 8, 16, 32
    ausm.FRAME_ENCODER.ENC_LAYERS = 6  # deformable encoder layers; 0: top-down sums instead (light models)
    ausm.FRAME_ENCODER.NUM_HEADS = 8
    ausm.FRAME_ENCODER.DIM_FEEDFORWARD = 1024
    # What is not trained: "none", "backbone" (stage 3 of the paper's recipe) or "encoder", all of it. For any backbone;
    # Detectron2's MODEL.BACKBONE.FREEZE_AT freezes some stages of those that have it.
    ausm.FRAME_ENCODER.FREEZE_AT = "none"

    ausm.COMPRESSOR = CfgNode()
    ausm.COMPRESSOR.LAYERS = 6  # paper
    ausm.COMPRESSOR.HEAD_DIM = 64  # width of an attention head
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
    ausm.PIXEL_DECODER.MEMORY_STRIDES = [32, 16, 8]  # G_t pooled to these, cycled through by the layers
    ausm.PIXEL_DECODER.NUM_DET = 100  # N_det: detection queries V (paper)


def _add_training_keys(cfg: CfgNode) -> None:
    # The loss of Mask2Former, with its names.
    cfg.MODEL.MASK_FORMER = CfgNode()
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHT = 2.0
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 5.0
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 5.0
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1  # rows of V only; rows of A have 1 (docs/deviations.md, 4)
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Share of the points that are drawn around the object, so that small ones count (docs/deviations.md, 9)
    cfg.MODEL.MASK_FORMER.BOX_POINT_RATIO = 0.0

    cfg.MODEL.AUSM.TRAIN = train = CfgNode()
    # "parallel": all frames of a clip at once, teacher forced (Alg. 2). "iterative": the same function frame by frame
    # (Fig. 4's baseline). "rollout": frame by frame on the model's own masks.
    train.MODE = "parallel"
    # "parallel": most times that the history is replaced by the masks that the model makes of it, all frames at once;
    # drawn anew for every batch from 0 on (docs/deviations.md, 10). 0 = the paper.
    train.OWN_PASSES = 0
    # A row of A whose object is hidden in frame t - 1: "keep": stays in A_{t-1} with an empty mask, as at inference;
    # "leave": is not in A_{t-1} (the paper's letter; docs/deviations.md, 1).
    train.HIDDEN_ROWS = "keep"
    train.PROMPT_PROB = 0.5  # probability that a clip's objects switch at their first visible frame
    # Weight of a per-place classification loss on X_t; 0 = the paper. For frame encoders trained from random weights.
    train.FRAME_CLASS_WEIGHT = 0.0
    train.CHECKPOINTING = False  # recompute the activations of every block in the backward pass (of backbones: Swin's)
    # History noise: probabilities per row and frame of M (docs/deviations.md, 10).
    train.HISTORY_NOISE = CfgNode()
    train.HISTORY_NOISE.ENABLED = True
    train.HISTORY_NOISE.MORPHOLOGY = 0.3  # erode or dilate by one cell of stride 4
    train.HISTORY_NOISE.SHIFT = 0.2
    train.HISTORY_NOISE.MAX_SHIFT = 2  # cells of stride 4
    train.HISTORY_NOISE.DROP = 0.1
    train.HISTORY_NOISE.SWAP = 0.02  # with another row of the same frame

    # Exponential moving average of the weights: kept in every checkpoint, evaluated in place of the weights.
    cfg.MODEL_EMA = CfgNode({"ENABLED": False, "DECAY": 0.999})

    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone, times BASE_LR


def _add_input_keys(cfg: CfgNode) -> None:
    # Clips, with Mask2Former-video's and VITA's names. Frames are counted among those that carry labels.
    cfg.INPUT.SAMPLING_FRAME_NUM = 5  # frames T of a training clip
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20  # frames to either side of the first one drawn
    cfg.INPUT.SAMPLING_FRAME_RANGES = []  # the same, one number per data set of DATASETS.TRAIN; empty: RANGE for all
    # 0: frames drawn at random from that range; k: evenly spaced frames, 1 to k frames apart, drawn per clip
    cfg.INPUT.SAMPLING_FRAME_STRIDE = 0
    cfg.INPUT.SAMPLING_FRAME_REVERSE = 0.0  # probability of playing a clip backwards
    # Most instances of a clip (and never more than MODEL.AUSM.NUM_ID); of more, so many are drawn, and what is left out
    # counts as not labelled, not as background.
    cfg.INPUT.MAX_INSTANCES = 100
    # Clip-wise augmentation: "brightness", "contrast", "saturation" (factors in 0.9..1.1), "rotation" (+-15 degrees),
    # "crop_scale" (pan and zoom), "warp" (soft deformation), beside INPUT.RANDOM_FLIP and the sizes of Detectron2.
    cfg.INPUT.AUGMENTATIONS = []
    # How clips look: grey (probability), and with probability PROB some of: contrast and brightness (factors),
    # resolution (least share of rows and columns), JPEG (least quality), noise and blur (most; standard deviations, of
    # 0..255 and in pixels). As they stand here nothing is changed.
    cfg.INPUT.LOOKS = CfgNode({"PROB": 0.0, "GREY": 0.0, "CONTRAST": [0.35, 1.3], "BRIGHTNESS": [0.5, 1.3]})
    cfg.INPUT.LOOKS.update({"RESOLUTION": 0.4, "JPEG": 15, "NOISE": 20.0, "BLUR": 1.5})
    # Frames shown in a part of themselves, down to that share of their sides: small objects.
    cfg.INPUT.SHRINK = CfgNode({"PROB": 0.0, "SMALLEST": 0.25})
    # Probability that a clip's objects are given by boxes, clicks or scribbles, and its first frame is shown twice.
    cfg.INPUT.DRAWN_PROMPTS = 0.0
    cfg.INPUT.CROP.PROB = 0.5  # probability of the crop, where INPUT.CROP.ENABLED (VITA, as the two below)
    cfg.INPUT.CROP.RESIZE = [400, 500, 600]  # short side before the crop, pixels
    cfg.INPUT.CROP.DRIFT = 0.0  # largest way of the crop window over a clip, relative to its own size (VITA: any)

    # Pseudo-videos: clips made of one image (data sets with task "image"), VITA's names.
    cfg.INPUT.PSEUDO = pseudo = CfgNode()
    pseudo.AUGMENTATIONS = ["rotation"]
    pseudo.MIN_SIZE_TRAIN = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768)  # short side, pixels
    pseudo.MAX_SIZE_TRAIN = 768
    pseudo.MIN_SIZE_TRAIN_SAMPLING = "choice_by_clip"
    pseudo.CROP = CfgNode({"ENABLED": False, "TYPE": "absolute_range", "SIZE": [384, 600]})
    pseudo.COPY_PASTE = 0.0  # probability of pasting the objects of another image, on a way of their own
    pseudo.PASTE_SCALE = 0.4  # least size of the other image, relative to the largest that fits
    pseudo.PASTE_TWIN = 0.0  # probability that the pasted objects are the image's own: others that look alike
    # Large-scale jitter instead of the sizes above (Mask2Former's COCO recipe).
    cfg.INPUT.LSJ_AUG = CfgNode({"ENABLED": False, "IMAGE_SIZE": 1024, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0})

    # How often each data set of DATASETS.TRAIN is drawn, relative to the others; empty: by its number of videos.
    cfg.DATASETS.DATASET_RATIO = []
    # [[data set, label set], ...] where it is another than the data set's own (docs/deviations.md, 5).
    cfg.DATASETS.LABEL_SETS = []
    # Data sets of your own: [[name, annotation file, image folder], ...] and [[name, image folder, mask folder], ...],
    # paths absolute or relative to DETECTRON2_DATASETS (datasets/README.md).
    cfg.DATASETS.YTVIS_STYLE = []
    cfg.DATASETS.DAVIS_STYLE = []
    # [[name, annotation file, image folder, label set, exhaustive], ...] in COCO's form, and images beside masks:
    # [[name, image folder, mask folder, label set, exhaustive], ...]; what follows the third entry may be left out.
    cfg.DATASETS.COCO_STYLE = []
    cfg.DATASETS.MASKED_IMAGES = []


def _add_test_keys(cfg: CfgNode) -> None:
    # Leave out data sets of DATASETS.TEST whose files are not there, and say so once; False: an error.
    cfg.TEST.SKIP_MISSING = False
    cfg.TEST.AUSM = test = CfgNode()
    test.FG_THRESHOLD = 0.5  # foreground probability from which a row of V becomes a track (paper, Sec. 4)
    test.FG_THRESHOLDS = []  # [[data set, threshold], ...] where it is another (Table 3: 0.9 for COCO)
    # Predictions kept of a video; 0: as many as its data set says: 10 for YouTube-VIS, 20 for OVIS (paper, Sec. 4), 100
    # for images (COCO). A VideoPredictor then shows 10 found objects a frame.
    test.TOPK = 0
    # "video": the best (track, class) pairs of a video; "frame": the paper's instances per frame (deviations, 12).
    test.TOPK_SCOPE = "video"
    # Score of a track: "mean" of its class probabilities over all frames since it began, hidden ones included;
    # "visible": over the frames that show it; "mask": as "mean", in every frame times the mean foreground probability
    # inside of the mask (Mask2Former); "max": their maximum (GenVIS). Measured: docs/experiments.md.
    test.TRACK_SCORE = "mean"
    # Foreground probability under which a row that was not given counts as hidden in a frame: its mask is not shown and
    # not in M. 0 = the paper: none does.
    test.HIDE_BELOW = 0.0
    # A detection that overlaps the mask of a tracked row by more than this IoU is no new track. 1 = the paper: any is.
    test.BIRTH_IOU = 1.0
    test.LABEL_SET = ""  # label set of what VideoPredictor detects; empty: the first of MODEL.AUSM.LABEL_SETS
    # bfloat16 autocast in streaming and evaluation. On CUDA a VideoPredictor rounds norms and V to it too.
    test.AMP = False
    test.CUDA_GRAPH = False  # capture the step of a stream in a CUDA graph, from its second frame on; CUDA only
    test.RESUME = False  # keep the videos that OUTPUT_DIR already holds results of
    # Times the input is repeated (Table 3): images as a still video, videos forward, backward, forward ..; the
    # last time counts.
    test.REPEAT = 1
    test.SPATIAL_TRAVERSAL = False  # images: the image, four 90 % crops around it, the image again (Appendix A)
    # A video that begins with a small given object is shown larger: so that the object covers so many cells of stride 4
    # (0: never), by at most that factor on INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. The factor's square is the work.
    test.SMALL_PROMPT_CELLS = 0
    test.SMALL_PROMPT_SCALE = 1.5
    test.SEED = 0  # of the Sampler of ID vectors
    test.TRACKING = False  # unprompted: also measure HOTA and track mAP, by the package trackeval
    # Also score the references (first mask copied, optical flow, per-frame detection with IoU linking).
    test.BASELINES = False
