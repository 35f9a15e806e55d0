# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Data: registered data sets, training clips, test videos. Importing registers the data sets without reading files."""

from ausm_d2.data import catalog as catalog
from ausm_d2.data.build import build_test_loader, build_train_loader
from ausm_d2.data.video import FrameSource, Instance, MaskSource, VideoRecord

__all__ = ["FrameSource", "Instance", "MaskSource", "VideoRecord", "build_test_loader", "build_train_loader", "catalog"]
