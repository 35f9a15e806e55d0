# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
