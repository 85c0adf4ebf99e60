# `make` alone lists the targets. Each one sets up .venv first, once: train and what shows runs need the packages of a user,
# tests, checks and benchmarks also those of the extra dev. make test-matrix has its own .venv-matrix.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
AT_ONCE ?= 2

.PHONY: help setup setup-dev train test test-slow test-matrix check ten check-native bench studies faults mutants picture pictures ui

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-20s %s\n' "$$name" "$$text"; done
	@echo 'Options of a target: make train ARGS="seed=1"; another Python: make PYTHON=python3.12 train'

# Skipped while pyproject.toml and constraints.txt are unchanged; dev holds all that base has, and base grows to dev. An
# interrupted set-up starts again from nothing. $(1): the extra, in brackets, $(2): base or dev, $(3): what it takes.
define SET_UP
	@sum="$$(cat pyproject.toml constraints.txt | cksum)"; \
	for part in $(2) dev; do if [ "$$(cat .venv/complete-$$part 2>/dev/null)" = "$$sum" ]; then exit 0; fi; done; \
	$(PYTHON) -c 'import sys; sys.exit("Grokbit needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0' || exit 1; \
	if [ -e .venv/begun ]; then echo "The last set-up was interrupted: starting again"; rm -rf .venv; fi; \
	echo "Setting up .venv: $(3), once"; \
	[ -x $(BIN)/python ] || { echo "1 of 3: an environment of $(PYTHON)"; $(PYTHON) -m venv .venv || exit 1; }; \
	touch .venv/begun; echo "2 of 3: packages, as pip tells"; \
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".$(1)" || exit 1; \
	echo "$$sum" > .venv/complete-$(2) && rm .venv/begun && echo "3 of 3: complete. Next: make train"
endef

setup: ## what training needs, into .venv (1.8 GB)
	$(call SET_UP,,base,about 1.8 GB and 3 to 10 minutes)

setup-dev: ## that, and what tests and checks need (2.2 GB)
	$(call SET_UP,[dev],dev,about 2.2 GB and 3 to 10 minutes)

train: setup ## a first run: 99 % of a multiplication table, in seconds
	@$(BIN)/python train.py experiment=fastest $(ARGS)

# One thread for each process: on a machine whose cores are all in use, more threads only wait for each other.
# The programs that tests start find their modules compiled, also where the shell says that Python may not keep them.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Needs no server and no browser: the aim is 12 minutes on two quiet cores, and they were measured on a shared server.
test: setup-dev ## all tests that need no server: 12 minutes
	@$(PYTEST) -m "not slow" $(ARGS)

# The rest: databases, notebooks, the longer examples of the docs, and what other programs' compilers take long for.
test-slow: setup-dev ## the rest: databases, notebooks, compilers, examples of the docs: 10 minutes
	@$(PYTEST) -m slow $(ARGS)

# The sweeper under Hydra's next release. All other packages have the versions of constraints.txt. The package is
# installed with --no-deps, so its `hydra-core<1.4` bound does not apply.
NEXT := hydra-core==1.4.0rc3
test-matrix: ## the sweeper under Hydra's next release
	@sum="$(NEXT) $$(cat pyproject.toml constraints.txt | cksum)"; \
	if [ "$$(cat .venv-matrix/complete 2>/dev/null)" = "$$sum" ]; then exit 0; fi; \
	echo "Setting up .venv-matrix: about 1.8 GB, 3 to 10 minutes, once"; \
	$(PYTHON) -m venv .venv-matrix || exit 1; \
	grep -vE '^(hydra-core|omegaconf|antlr4-python3-runtime)==' constraints.txt > .venv-matrix/rest.txt; \
	pip=".venv-matrix/bin/python -m pip install --quiet"; \
	$$pip --no-deps --requirement .venv-matrix/rest.txt && $$pip --pre $(NEXT) && $$pip --no-deps --editable . || exit 1; \
	echo "$$sum" > .venv-matrix/complete
	@OMP_NUM_THREADS=1 PYTHONWARNINGS="ignore:The version_base parameter" \
	  .venv-matrix/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal \
	  tests/sweep tests/tracking/test_optuna_storage.py $(ARGS)

check: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ten: setup ## the Power of Ten over this repository
	@$(BIN)/python -m research.compliance . $(ARGS)

# The C kernels with every installed compiler, under AddressSanitizer and UndefinedBehaviorSanitizer if it has them. A read or
# write beyond a tensor ends the tests.
COMPILERS ?= gcc clang
check-native: setup-dev ## the C kernels under sanitizers
	@ran=; for cc in $(COMPILERS); do \
	  command -v "$$cc" > /dev/null || { echo "== $$cc is not installed"; continue; }; \
	  case "$$cc" in *clang*) names="libclang_rt.asan-$$(uname -m).so";; *) names="libasan.so libubsan.so";; esac; \
	  flags="-g -fsanitize=address,undefined -fno-sanitize-recover=all"; preload=; \
	  for name in $$names; do \
	    file="$$($$cc -print-file-name=$$name)"; [ -e "$$file" ] && preload="$$preload $$file" || flags=; \
	  done; \
	  echo "== $$cc $${flags:-without sanitizers: they are not installed}"; \
	  cache="$$(mktemp -d)"; ran=yes; \
	  ( export CC="$$cc $$flags" GROKBIT_CACHE="$$cache" OMP_NUM_THREADS=1 LD_PRELOAD="$${flags:+$$preload}" \
	      ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1; \
	    $(BIN)/python -c 'import sys; from research.kernels import ternary; from research.optim import fused; sys.exit(None in (ternary.get_library(), fused.get_library()))' && \
	    $(BIN)/python -m pytest tests/kernels/test_build.py tests/nn/test_packed.py tests/nn/test_decode.py tests/optim/test_fused.py $(ARGS) ); \
	  status=$$?; rm -rf "$$cache"; [ $$status = 0 ] || exit $$status; \
	done; [ -n "$$ran" ]

bench: setup-dev ## speed against other programs, as ratios
	@for name in start_up loop_overhead train_step filter_cost ternary_matmul generate gpu tracking_overhead checkpointing sync_cost sweep_overhead workers tokens; do \
	  echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# The quick size of every study, from nothing: results.csv, the tables of its README, its figure. AT_ONCE studies run side by
# side, those that take longest first; the runs of a study follow one another.
studies: setup ## the quick size of every study, from nothing
	@rm -rf outputs/studies/quick
	@printf '%s\n' grokking bitnet_x_grokfast grokfast_modular optimizers fastest alpha_lamb pbt_digits lr_sensitivity tasks bitnet_gap tokens distill finetune | \
	  xargs -P $(AT_ONCE) -I STUDY $(BIN)/python -m experiments.STUDY.study --at-once=1 $(ARGS)

faults: setup-dev ## kill and damage runs, and see that nothing is lost
	@$(BIN)/python -m benchmarks.faults --table experiments/faults $(ARGS)
	@$(BIN)/python -m benchmarks.sweep_kills

# Needs cosmic-ray. After a kill the same command goes on with the next mutant.
mutants: setup-dev ## put faults into the code, and see what contracts find that tests miss
	@$(BIN)/python -m benchmarks.mutants --table experiments/mutants $(ARGS)

# The README's picture. It shows seconds and speeds, so record it on a quiet machine.
picture: setup ## record the README's terminal
	@$(BIN)/python docs/record_terminal.py $(ARGS)

# Needs Chromium and its driver.
pictures: setup-dev ## record the pictures of MLflow's pages in docs/pictures
	@$(BIN)/python docs/record_mlflow.py $(ARGS)

# Until Ctrl-C. ARGS="--port 5001" takes another port.
ui: setup ## all runs in the browser, by MLflow
	@$(BIN)/python -m research.tracking.ui $(ARGS)
