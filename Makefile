# Everything from here: `make` alone lists what there is.
PYTHON ?= python3
VENV   ?= .venv
PROFILE ?=
FROM   ?=
MINUTES ?=
RUN    := $(VENV)/bin/python
PAPERS := $(patsubst papers/%/replicate.py,%,$(wildcard papers/*/replicate.py))
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup test lint validate asan tables report status campaign try doctor repro experiments faults clean

help: ## this list
	@echo "make reproduce-<paper> [PROFILE=quick|paper]   train, tables, figures (papers: $(PAPERS))"
	@echo "make rehearse-<torch version>                  the rehearsal without a GPU under another torch, for example 2.11"
	@echo "make data-<name> [FROM=folder]                 prepare cifar10, cifar100, mnist, tiny-imagenet or digits; imagenet, imagenet-lt, inaturalist2018, places-lt or miniature"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 47
	@echo "Variables: PROFILE, FROM, MINUTES, LOSS, COLUMN, PYTHON=$(PYTHON), VENV=$(VENV), ARGS (more options, for example reproduce-mm ARGS='--device cpu', status ARGS=--all)"

setup: $(STAMP) ## the environment in .venv, from requirements.lock

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} is here; this needs 3.11 to 3.13: make setup PYTHON=python3.12")'
	@echo "Setting up $(VENV): torch, torchvision and the rest, some 5 GB; a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

data-%: $(STAMP)
	@$(RUN) -m papers prepare $* $(if $(FROM),--from "$(FROM)")

reproduce-%: $(STAMP)
	@test -f papers/$*/replicate.py || { echo "There is no paper '$*'; there are: $(PAPERS)" >&2; exit 2; }
	@$(RUN) -m papers.$*.replicate reproduce $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

test: $(STAMP) ## all tests, on two processes (some minutes on two cores)
	@$(RUN) -m pytest -n 2 $(ARGS)

rehearse-%: $(STAMP)
	@test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	@$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check "torch==$*.*" torchvision
	@grep -vE '^(torch|torchvision|triton|nvidia[-a-z0-9]*|cuda[-a-z0-9]*|setuptools|sympy)==' requirements.lock > $(VENV)-$*/requirements.txt
	@$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)-$*/requirements.txt
	@$(VENV)-$*/bin/python -m pytest -q tests/common/train/test_rehearsal.py $(ARGS)

faults: $(STAMP) ## kill every command a thousand times, damage every file, and write docs/promises.md (an hour; goes on where it stopped)
	@OMP_NUM_THREADS=1 $(RUN) -m tests.faults.trials --jobs 2 $(ARGS); a=$$?; OMP_NUM_THREADS=1 $(RUN) -m tests.faults.fuzz; b=$$?; \
		$(RUN) -m tests.faults.promises; exit $$((a + b))

lint: $(STAMP) ## ruff
	@$(RUN) -m ruff check .

validate: $(STAMP) $(VENV)-validate/.installed ## what `export` writes, by the validators of those who read it (an environment of its own)
	@rm -rf .work/validate
	@$(RUN) -m tests.validators.sample .work/validate
	@$(VENV)-validate/bin/python tests/validators/check.py .work/validate

$(VENV)-validate/.installed: tests/validators/requirements.lock
	@$(PYTHON) -m venv $(VENV)-validate
	@$(VENV)-validate/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

asan: ## the C++ step under the address sanitizer: it never reads or writes beside its arrays (a minute)
	@mkdir -p .work && $(or $(CXX),g++) -std=c++20 -g -O1 -march=native -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all \
		-o .work/cpu_resnet_bounds tests/common/models/cpu_resnet_bounds.cpp && .work/cpu_resnet_bounds

tables: $(STAMP) ## the published profile's tables and claims from the records that are here, a line a paper (ARGS=--all prints them)
	@$(RUN) -m papers table $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

report: $(STAMP) ## report/index.html, tables, figures, and the generated parts of the READMEs
	@$(RUN) -m papers report $(ARGS)

status: $(STAMP) ## how many runs of each paper have a record (ARGS=--all: the seeds of every method and column)
	@$(RUN) -m papers status $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

campaign: $(STAMP) ## train what is worth most and fits in MINUTES, over all papers (ARGS='--dry-run' shows the plan)
	@$(RUN) -m papers campaign $(if $(PROFILE),--profile $(PROFILE)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

try: $(STAMP) ## judge a loss of your own: make try LOSS=my_loss.py [COLUMN=cifar10-lt-100] [MINUTES=20]; the file is executed
	@$(RUN) -m papers try $(LOSS) $(if $(COLUMN),--column $(COLUMN)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

doctor: $(STAMP) ## what is wrong with this machine, and how to mend it
	@$(RUN) -m papers doctor

repro: $(STAMP) ## the quick profile through DVC: only what changed
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/dvc repro

experiments: $(STAMP) ## what `dvc exp run` has tried: the numbers that differ
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/dvc exp show --only-changed --no-pager --drop 'plans/|summaries/'

clean: ## remove what can be made again: unfinished work, all of the quick profile, tables, figures (not the environment, data, records or weights)
	@rm -rf .work papers/*/*/quick papers/*/tables papers/*/figures
