# make moa: train the VAE with a MOA head.   make wm: train a world model and judge it.   make play: train a policy and judge it.
# make study: every method, two games, as one page; make study-full: eight games, five seeds.
# make test: lint, check the types and run the tests.   make format: what `make test` expects.   Windows: see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: moa wm play pretrained tour study study-full test format clean

moa: $(VENV)/.run
	$(BIN)/python pretrain_vae.py --loss moa

wm: $(VENV)/.run
	$(BIN)/python train_world_model.py
	$(BIN)/python test_obs_reward_model.py

play: $(VENV)/.run
	$(BIN)/python hop_ppo.py --total-timesteps 400000

pretrained: $(VENV)/.run
	$(BIN)/python -m benchmarks.pretrained

tour: $(VENV)/.run
	$(BIN)/python -m benchmarks.tour

study: $(VENV)/.run
	$(BIN)/python -m benchmarks.study

study-full: $(VENV)/.run
	$(BIN)/python -m benchmarks.study --full

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || \
	  { echo "error: Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV)
