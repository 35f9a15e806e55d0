# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What only training needs: teacher forcing, the matcher and the criterion."""
