# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A streaming step as an ONNX graph, and a driver that needs NumPy, OpenCV and onnxruntime only."""
