# PYTHON= chooses the interpreter (3.11 or 3.12) that .venv is made with; the
# environment is made anew when the interpreter's version, setup.cfg or a
# constraints file changes.
supported = 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
version = 'import sys; print("%d.%d" % sys.version_info[:2])'
# The first that runs and is new enough: a version manager's shim may be on
# PATH for an interpreter that is not installed.
ifeq ($(origin PYTHON), undefined)
  PYTHON := $(shell for p in python3.11 python3.12 python3; do \
    "$$p" -c $(supported) 2>/dev/null && echo "$$p" && break; done)
endif
VERSION := $(shell "$(PYTHON)" -c $(version) 2>/dev/null)

WORKDIR ?= runs/glorank_rl
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed-$(VERSION)

# A step's memory is hundreds of MB that glibc takes anew each time: in pages of
# 2 MB, not 4 KB, a fifth of a session's step is saved. Others ignore this.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: train test lint bench reproduce clean

train: $(INSTALLED)
	$(BIN)/python -m launch.train --config=configs/glorank_rl.py \
	  --workdir=$(WORKDIR) $(ARGS)

# Every test process compiles on one core and has eight CPU devices; without
# these limits each of them would start a pool of threads for the machine.
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: export NPROC = 1
test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist=loadfile \
	  --no-loadscope-reorder $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path=$(BIN)/python

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[bench]' \
	  -c constraints-$(VERSION).txt
	$(BIN)/python -m benchmarks $(ARGS)

reproduce: $(INSTALLED)
	$(BIN)/python -m benchmarks.reproduce $(ARGS)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): setup.cfg pyproject.toml $(wildcard constraints-*.txt)
	@test -f constraints-$(VERSION).txt || { echo "Python 3.11 or 3.12 is\
	 needed, but PYTHON='$(PYTHON)' runs as '$(or $(VERSION),nothing)'; run\
	 make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into .venv for Python $(VERSION): a few minutes."
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -e '.[test,dev]' -c constraints-$(VERSION).txt
	@touch $@
