# Every command of this project. `make help` lists them; nothing but python3 (3.11 or newer) and make is needed to start.
.DEFAULT_GOAL := help
.PHONY: proof help setup book test torture oldest newest lint students refresh address reproduce clean

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

PROFILE  ?=#   smoke, lite, colab or paper; empty: what the chapters say (lite)
TORCH    ?=#   proof: the torch that is there before the package comes, e.g. TORCH="torch==2.9.1 torchvision==0.24.1"
REPO_URL ?=#   empty: the address in pyproject.toml
KEEP     ?=#   KEEP=1: keep the executed chapters whose inputs have not changed (oldest, newest: the environment)
CHAPTERS ?=#   refresh these only, e.g. CHAPTERS="book/03-fusemix.ipynb"
TESTS    ?=#   torture, oldest, newest: these only, e.g. TESTS="tests/test_store.py"
WORKERS  ?= 2
# Elsewhere than on Linux with a GPU one may want a CPU build: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# One thread a process: results then depend less on the machine, and two processes beat one with two threads by far.
export OMP_NUM_THREADS ?= 1

help:  ## this list
	@echo "make book     read it: sets up .venv, runs every chapter, builds the pages"
	@echo "make test     check it: unit tests, chapters against their committed outputs, smoke runs, warning-free build"
	@echo ""
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo ""
	@echo "Settings: PROFILE=smoke|lite|colab|paper  REPO_URL=https://…  KEEP=1  CHAPTERS=\"book/…\"  WORKERS=$(WORKERS)"

setup: $(STAMP)  ## create .venv and install what was tested (once; the only step that needs a network)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make setup: $(PYTHON) is missing or older than 3.11; name another one: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { echo "make setup: no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): some minutes and 2 to 6 GB, once."
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --no-deps "$$(grep '^torchvision==' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[book,test]"
	@touch $@

book: setup  ## execute the chapters into _build and build the pages; the work tree stays as it is
	$(BIN)/python -m tools.book build $(if $(PROFILE),--profile $(PROFILE)) $(if $(REPO_URL),--repo-url $(REPO_URL)) $(if $(KEEP),--keep)

test: setup lint  ## everything that CI checks; pytest comes last
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600 \
	  -n $(WORKERS) --dist loadfile --durations 12 book tests

torture: setup  ## the heavy proofs: kills, broken files, hostile input, counted (half an hour)
	$(BIN)/python -m tools.torture --workers $(WORKERS) $(TESTS)

lint: setup
	$(BIN)/ruff check .

students: setup  ## write notebooks without solutions, for students, into _build/students
	$(BIN)/python -m tools.students $(if $(REPO_URL),--repo-url $(REPO_URL))

refresh: setup  ## execute the chapters and write them back as the committed ones
	$(BIN)/python -m tools.book refresh $(CHAPTERS)

address: setup  ## write another repository address into pyproject.toml and the chapters: make address REPO_URL=https://…
	$(BIN)/python -m tools.book address "$(REPO_URL)"

proof: setup  ## run every chapter from the wheel, in a fresh environment without the repository (minutes, network)
	$(BIN)/python -m tools.proof $(if $(PROFILE),--profile $(PROFILE)) $(if $(TORCH),--torch $(TORCH))

oldest: setup  ## the unit tests with the lowest versions that pyproject.toml allows (minutes, network, 8 GB)
	$(BIN)/python -m tools.ranges $@ --workers $(WORKERS) $(if $(KEEP),--keep) $(TESTS)

newest: setup  ## the same with the highest versions
	$(BIN)/python -m tools.ranges $@ --workers $(WORKERS) $(if $(KEEP),--keep) $(TESTS)

reproduce: setup  ## rebuild every committed record from nothing (about five hours on two cores)
	$(BIN)/python -m fusemix_lite.experiments all

clean:  ## remove what was built; .venv and the latent cache stay
	rm -rf _build .pytest_cache .ruff_cache
