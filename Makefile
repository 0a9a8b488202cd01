# Poise: make, make quickstart, make lint, make test, make docs, make wheel, make bench, make fuzz.
# Needs Python 3.10 or newer, gcc and make.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
DOCS_VENV  := .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready
NMS    := lib/poise/evaluation/nms/.built
FAMILIES := hrnet hrnet_dark hrnet_udp mspn posenas moganet
QUICK  := experiments/synthetic/res2net18_quickstart.yaml

.DELETE_ON_ERROR:
.PHONY: all setup quickstart families lint docs wheel test test-slow bench fuzz clean

all: setup

setup: $(READY) $(NMS)

# the environment is rebuilt only when a file that lists its packages has changed
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; set PYTHON=python3.x" >&2; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# optional: without a compiler NumPy and OpenCV compute the same; JPEG regions also need
# libjpeg-turbo's header
$(NMS): lib/poise/evaluation/nms/_nms.pyx lib/poise/codecs/_flip.pyx lib/poise/evaluation/_matching.pyx lib/poise/io/_jpeg.pyx lib/poise/structures/_warp.pyx setup.py $(READY)
	$(RUN) setup.py --quiet build_ext --inplace
	@touch $@

quickstart: setup
	$(RUN) tools/make_synthetic.py --out data/synthetic --train 2000 --val 300
	$(RUN) tools/train.py --cfg $(QUICK)
	$(RUN) tools/test.py --cfg $(QUICK)
	@echo "images with predicted skeletons: output/coco/pose_res2net/res2net18_quickstart/pictures/"

# every family's small recipe on the quick start's dataset, in sequence: 12 to 28 minutes each on one
# core
families: setup
	$(RUN) tools/make_synthetic.py --out data/synthetic --train 2000 --val 300
	set -e; for name in $(FAMILIES); do $(RUN) tools/train.py --cfg experiments/synthetic/$${name}_small.yaml; done

# two processes, the tests of a file in one of them; -rs lists skipped tests
test: setup
	$(RUN) -m pytest -q -n 2 --dist loadfile -rs

# formatting, names, complexity, layers, types, spelling
lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell
	$(VENV)/bin/codespell --builtin en-GB_to_en-US -D - -D dictionary.txt
	$(VENV)/bin/mypy

# the site in site/, from an environment of its own without PyTorch; warnings are errors
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --clean

$(DOCS_READY): docs/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; set PYTHON=python3.x" >&2; exit 1; }
	test -x $(DOCS_VENV)/bin/pip || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

wheel: setup
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

test-slow: setup
	$(RUN) -m pytest -q -n 2 --dist loadfile -m slow -rs

# continues the previous run; updates fuzz/counts.json and docs/reliability.md. With atheris
# (pip install .[fuzz]) it is guided by coverage
MINUTES ?= 60
fuzz: setup
	$(RUN) fuzz/run.py --minutes $(MINUTES)
	$(RUN) fuzz/page.py

# measures everything and replaces the table of docs/performance.md
bench: setup
	$(RUN) benchmarks/run.py

clean:
	rm -rf $(VENV) $(DOCS_VENV) build dist site .pytest_cache lib/*.egg-info lib/poise/*/*.so lib/poise/evaluation/nms/_nms.c lib/poise/codecs/_flip.c lib/poise/evaluation/_matching.c lib/poise/io/_jpeg.c lib/poise/structures/_warp.c $(NMS)
	find lib tools tests benchmarks fuzz -name __pycache__ -type d -prune -exec rm -rf {} +
