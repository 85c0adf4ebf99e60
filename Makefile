# make setup | train | test | test-slow | check | check-native | bench | studies | faults | picture | pictures | ui
# Each target sets up .venv first, once. make test-matrix has its own .venv-matrix.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
AT_ONCE ?= 2

.PHONY: setup train test test-slow test-matrix check check-native bench studies faults picture pictures ui

# Skipped while pyproject.toml and constraints.txt are unchanged. An interrupted set-up starts again from nothing.
setup:
	@sum="$$(cat pyproject.toml constraints.txt | cksum)"; \
	if [ "$$(cat .venv/complete 2>/dev/null)" = "$$sum" ]; then exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit("Grokbit needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0' || exit 1; \
	if [ -e .venv/begun ]; then echo "The last set-up was interrupted: starting again"; rm -rf .venv; fi; \
	echo "Setting up .venv: about 1.8 GB, 3 to 10 minutes, once"; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || exit 1; \
	touch .venv/begun && $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" || exit 1; \
	echo "$$sum" > .venv/complete && rm .venv/begun && echo "Set-up is complete"

train: setup
	@$(BIN)/python train.py experiment=fastest $(ARGS)

# One thread for each process: on a machine whose cores are all in use, more threads only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Needs no server and no browser: 12 minutes on two quiet cores.
test: setup
	@$(PYTEST) -m "not slow" $(ARGS)

# The rest: databases, notebooks, and the longer examples of the docs. At most 30 minutes.
test-slow: setup
	@$(PYTEST) -m slow $(ARGS)

# The sweeper under Hydra's next release. All other packages have the versions of constraints.txt. The package is
# installed with --no-deps, so its `hydra-core<1.4` bound does not apply.
NEXT := hydra-core==1.4.0rc3
test-matrix:
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

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C kernels with every installed compiler, under AddressSanitizer and UndefinedBehaviorSanitizer if it has them. A read or
# write beyond a tensor ends the tests.
COMPILERS ?= gcc clang
check-native: setup
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

bench: setup
	@for name in start_up loop_overhead train_step filter_cost ternary_matmul generate gpu tracking_overhead checkpointing sync_cost sweep_overhead workers tokens; do \
	  echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# The quick size of every study, from nothing: results.csv, the tables of its README, its figure. AT_ONCE studies run side by
# side, those that take longest first; the runs of a study follow one another.
studies: setup
	@rm -rf outputs/studies/quick
	@printf '%s\n' grokking bitnet_x_grokfast grokfast_modular optimizers fastest alpha_lamb pbt_digits lr_sensitivity bitnet_gap | \
	  xargs -P $(AT_ONCE) -I STUDY $(BIN)/python -m experiments.STUDY.study --at-once=1 $(ARGS)

faults: setup
	@$(BIN)/python -m benchmarks.faults --table experiments/faults $(ARGS)
	@$(BIN)/python -m benchmarks.sweep_kills

# The README's picture. It shows seconds and speeds, so record it on a quiet machine.
picture: setup
	@$(BIN)/python docs/record_terminal.py $(ARGS)

# The pictures of MLflow's pages in docs/pictures. Needs Chromium and its driver.
pictures: setup
	@$(BIN)/python docs/record_mlflow.py $(ARGS)

# MLflow's pages of all runs, until Ctrl-C. ARGS="--port 5001" takes another port.
ui: setup
	@$(BIN)/python -m research.tracking.ui $(ARGS)
