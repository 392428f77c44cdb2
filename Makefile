# make setup | demo | test | soak | fuzz | ui | lint | docs | bench | screenshots
PYTHON ?= python3
BIN := .venv/bin
# the build of FAISS, cpu or gpu: `make setup FAISS=gpu`. Without it the one that was set up last, at first cpu.
FAISS ?= $(patsubst .venv/.ready-%,%,$(firstword $(wildcard .venv/.ready-*) cpu))
$(if $(filter cpu gpu,$(FAISS)),,$(error FAISS=$(FAISS): wanted cpu or gpu))
STUDY ?= studies/demo

.PHONY: setup demo test soak fuzz ui lint docs bench screenshots
setup: .venv/.ready-$(FAISS)

# torch first and alone: where no CPU build is offered for "torch", a range would fetch gigabytes of CUDA packages.
# FAISS last and after both builds are gone: each writes the files of the other, and takes them along.
.venv/.ready-$(FAISS): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	rm -f .venv/.ready*
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip uninstall --quiet --quiet --yes faiss-cpu faiss-gpu
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(FAISS),dev]'
	touch $@

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile  # most wait for processes that they start
	$(BIN)/python -m pytest -m browser $(wildcard tests/test_*browser.py)  # skipped, with the reason, where there is no chromium

soak: setup
	$(BIN)/python -m pytest -m soak

fuzz: setup
	$(BIN)/python -m pip install --quiet -e '.[fuzz]'
	$(BIN)/python tests/helpers/fuzz.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

# the pages that come from the code, and the site in build/docs
docs: setup
	$(BIN)/python tests/helpers/pages.py
	$(BIN)/mkdocs build --strict --quiet

demo: setup
	$(BIN)/hardmoe demo --root $(STUDY)

ui: setup
	[ -e $(STUDY)/study.toml ] || $(BIN)/hardmoe init $(STUDY) --source synthetic --recipe demo
	$(BIN)/hardmoe ui --study $(STUDY)/study.toml

# pictures of the docs, of the demo or another finished study: make screenshots STUDY=folder
screenshots: demo
	HARDMOE_SCREENSHOTS=docs/images HARDMOE_SCREENSHOTS_STUDY=$(STUDY)/study.toml \
		$(BIN)/python -m pytest -m browser $(wildcard tests/test_*browser.py) -k pictures_for_the_docs

bench: setup
	$(BIN)/python benchmarks/dagster_tax.py
	$(BIN)/python benchmarks/text_side.py
	$(BIN)/python benchmarks/duplicates.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/million.py
	$(BIN)/python benchmarks/stored.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/pages.py
	$(BIN)/python benchmarks/many_shards.py
	$(BIN)/python benchmarks/source_memory.py
	$(BIN)/python benchmarks/copies.py
	$(BIN)/python benchmarks/step.py --networks tiny wide
	$(BIN)/python benchmarks/busy.py
	$(BIN)/python benchmarks/code_location.py
	$(BIN)/python benchmarks/ticks.py
	$(BIN)/python benchmarks/routed.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/ray_share.py
