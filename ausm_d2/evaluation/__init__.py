# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Scores, submissions and their checks.

``evaluators.build_evaluator`` makes the Detectron2 evaluator of a data set. The measures and the result files need no
model: ``python -m ausm_d2.evaluation.ytvis``, ``.vos`` and ``.writers`` are commands, so nothing is imported here.
"""
