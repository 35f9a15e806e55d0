# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The page that ``ausm app`` serves: click an object in a video and see it followed."""
