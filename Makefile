# Poise: make, make quickstart, make lint, make test, make bench, make fuzz. Nothing but Python 3.10+, gcc and make is needed beforehand.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
NMS    := lib/poise/evaluation/nms/.built
FAMILIES := hrnet hrnet_dark hrnet_udp mspn posenas moganet
QUICK  := experiments/synthetic/res2net18_quickstart.yaml

.DELETE_ON_ERROR:
.PHONY: all setup quickstart families lint test test-slow bench fuzz clean

all: setup

setup: $(READY) $(NMS)

# the environment is made again only when what it must hold has changed
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; set PYTHON=python3.x" >&2; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# without a compiler NumPy and OpenCV do the same work; that is said here and by the program. Regions of JPEGs need libjpeg-turbo's header too
$(NMS): lib/poise/evaluation/nms/_nms.pyx lib/poise/codecs/_flip.pyx lib/poise/evaluation/_matching.pyx lib/poise/io/_jpeg.pyx lib/poise/structures/_warp.pyx setup.py $(READY)
	$(RUN) setup.py --quiet build_ext --inplace
	@touch $@

quickstart: setup
	$(RUN) tools/make_synthetic.py --out data/synthetic --train 2000 --val 300
	$(RUN) tools/train.py --cfg $(QUICK)
	$(RUN) tools/test.py --cfg $(QUICK)
	@echo "pictures with predicted skeletons: output/coco/pose_res2net/res2net18_quickstart/pictures/"

# every family's recipe on the quickstart's set, one after the other: about a quarter of an hour on one core for each, MogaNet more
families: setup
	$(RUN) tools/make_synthetic.py --out data/synthetic --train 2000 --val 300
	set -e; for name in $(FAMILIES); do $(RUN) tools/train.py --cfg experiments/synthetic/$${name}_small.yaml; done

# two at a time, the tests of a file in one process, and at the end what was skipped and why
test: setup
	$(RUN) -m pytest -q -n 2 --dist loadfile -rs

# formatting, names, complexity, layers, types, spelling
lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy

test-slow: setup
	$(RUN) -m pytest -q -n 2 --dist loadfile -m slow -rs

# goes on where the last one ended; counts and the table of docs/reliability.md are written by it. With atheris (pip install .[fuzz]) it is guided by coverage
MINUTES ?= 60
fuzz: setup
	$(RUN) fuzz/run.py --minutes $(MINUTES)
	$(RUN) fuzz/page.py

# everything that docs/performance.md says about speed, measured here; the page's table is written anew
bench: setup
	$(RUN) benchmarks/run.py

clean:
	rm -rf $(VENV) build .pytest_cache lib/*.egg-info lib/poise/*/*.so lib/poise/evaluation/nms/_nms.c lib/poise/codecs/_flip.c lib/poise/evaluation/_matching.c lib/poise/io/_jpeg.c lib/poise/structures/_warp.c $(NMS)
	find lib tools tests benchmarks fuzz -name __pycache__ -type d -prune -exec rm -rf {} +
