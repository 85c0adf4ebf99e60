# make train | test | check | check-native | bench | studies | faults | ui | setup. Each sets up .venv first, once;
# make test-matrix .venv-matrix.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
AT_ONCE ?= 2

.PHONY: setup train test test-matrix check check-native bench studies faults ui

# Skipped while pyproject.toml and constraints.txt are as they were; one that was interrupted starts afresh.
setup:
	@sum="$$(cat pyproject.toml constraints.txt | cksum)"; \
	if [ "$$(cat .venv/complete 2>/dev/null)" = "$$sum" ]; then exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit("Grokbit needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Give another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0' || exit 1; \
	if [ -e .venv/begun ]; then echo "The last set-up was interrupted: starting afresh"; rm -rf .venv; fi; \
	echo "Setting up .venv: about 1.8 GB, 3 to 10 minutes, once"; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || exit 1; \
	touch .venv/begun && $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" || exit 1; \
	echo "$$sum" > .venv/complete && rm .venv/begun && echo "Set-up is complete"

train: setup
	@$(BIN)/python train.py experiment=fastest $(ARGS)

# One thread each: on a machine whose cores are all in use more of them only wait for each other.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

# The sweeper under Hydra's next release. All else is as CI tested it; the package's own cap on Hydra is not asked.
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

# The C kernels by each compiler that is here, under AddressSanitizer and UndefinedBehaviorSanitizer where it has them:
# a read or write beyond a tensor ends the tests.
COMPILERS ?= gcc clang
check-native: setup
	@ran=; for cc in $(COMPILERS); do \
	  command -v "$$cc" > /dev/null || { echo "== $$cc is not here"; continue; }; \
	  case "$$cc" in *clang*) names="libclang_rt.asan-$$(uname -m).so";; *) names="libasan.so libubsan.so";; esac; \
	  flags="-g -fsanitize=address,undefined -fno-sanitize-recover=all"; preload=; \
	  for name in $$names; do \
	    file="$$($$cc -print-file-name=$$name)"; [ -e "$$file" ] && preload="$$preload $$file" || flags=; \
	  done; \
	  echo "== $$cc $${flags:-without sanitizers: they are not installed}"; \
	  cache="$$(mktemp -d)"; ran=yes; \
	  ( export CC="$$cc $$flags" GROKBIT_CACHE="$$cache" OMP_NUM_THREADS=1 LD_PRELOAD="$${flags:+$$preload}" \
	      ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1; \
	    $(BIN)/python -c 'import sys; from research.kernels import ternary as native; from research.optim import fused; sys.exit(None in (native.get_library(), fused.get_library()))' && \
	    $(BIN)/python -m pytest tests/kernels/test_build.py tests/nn/nn/test_packed.py tests/nn/nn/test_decode.py tests/optim/optim/test_fused.py $(ARGS) ); \
	  status=$$?; rm -rf "$$cache"; [ $$status = 0 ] || exit $$status; \
	done; [ -n "$$ran" ]

bench: setup
	@for name in start_up loop_overhead train_step filter_cost ternary_matmul generate gpu tracking_overhead checkpointing sweep_overhead workers; do \
	  echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# The quick size of each study, again from nothing: results.csv, the tables of its README, its figure. AT_ONCE of them beside
# each other, each one run after the other, those that take longest first.
studies: setup
	@rm -rf outputs/studies/quick
	@printf '%s\n' grokking bitnet_x_grokfast grokfast_modular optimizers fastest alpha_lamb pbt_digits lr_sensitivity bitnet_gap | \
	  xargs -P $(AT_ONCE) -I STUDY $(BIN)/python -m experiments.STUDY.study --at-once=1 $(ARGS)

faults: setup
	@$(BIN)/python -m benchmarks.faults --table experiments/faults $(ARGS)
	@$(BIN)/python -m benchmarks.sweep_kills

ui: setup
	@mkdir -p outputs
	@$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri "sqlite:///$(CURDIR)/outputs/mlflow.db"
