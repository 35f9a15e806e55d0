# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training of the Pixel Decoder and its proposals on their recorded inputs. All modules before them are frozen."""
