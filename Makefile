# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
# make demo | test | lint | types: each sets up .venv first where that has not been done (6 GB; minutes, once).
# PYTHON=/path/to/python3.11 chooses the Python that .venv is made with.
# make gpu: the tests that need a GPU, the figures that docs/benchmarks.md misses, and a training, into output/gpu/ (tools/measure_on_gpu.py).
#   In an environment of your own, without .venv: python -m tools.measure_on_gpu.
# make demo VIDEO=path [PROMPT=mask.png] runs on a video of your own.
# make docs: the API page, from the docstrings, into output/docs/.
# EXTRAS=dev: which of setup.py's extras are installed. Ray, half a gigabyte, is not, so that its tests say that it is missing.
# JOBS=4: processes that make test runs the tests in, file by file, the longest first (tests/conftest.py); ARGS: further arguments of pytest or of tools.measure_on_gpu.

PYTHON ?= python3
JOBS ?= 2
EXTRAS ?= app,completion,demo,dev,export,supervision
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint types docs gpu

# The models here are small: their threads would mostly wait for each other (docs/notes.md, threads).
export OMP_NUM_THREADS ?= 1

setup: $(READY)

demo: $(READY)
	$(BIN)/python -W ignore::FutureWarning demo/make_demo.py $(if $(VIDEO),--video "$(VIDEO)") $(if $(PROMPT),--prompt "$(PROMPT)")

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

API := ausm_d2 ausm_d2.config ausm_d2.errors ausm_d2.evaluation.vos ausm_d2.evaluation.ytvis ausm_d2.finetune.run \
	ausm_d2.jobs.track ausm_d2.streaming.predictor ausm_d2.streaming.prompts ausm_d2.streaming.result \
	ausm_d2.streaming.session ausm_d2.video.inputs ausm_d2.visualization

docs: $(READY)
	$(BIN)/pdoc --docformat google --output-directory output/docs $(API)

gpu: $(READY)
	$(BIN)/python -m tools.measure_on_gpu $(ARGS)

# PIP_CONSTRAINT, not -c: it holds in the isolated builds of the source packages too.
$(READY): export PIP_CONSTRAINT := constraints.txt
$(READY): export PIP_DISABLE_PIP_VERSION_CHECK := 1
$(READY): setup.py constraints.txt tools/install_detectron2.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; expected Python 3.11 or newer (make PYTHON=/path/to/python3.11 ...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: $(PYTHON) is Python %d.%d, expected 3.11 or newer (make PYTHON=/path/to/python3.11 ...)" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off -e '.[$(EXTRAS)]'
	$(BIN)/python tools/install_detectron2.py
	$(BIN)/python -m pip check
	@$(BIN)/python -c 'import cv2' || { echo "error: OpenCV misses a system library (above); on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0" >&2; exit 1; }
	@touch $@
