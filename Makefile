# Every command a person types. `make demo` and `make test` set up all they need.
PYTHON ?= python3
BIN := .venv/bin
DEV := .venv/.dev
INSTALL := $(BIN)/uv pip install --quiet --python
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadgroup --ignore tests/training
STACK := ChestXray
# For every platform and Python from 3.11 on; what is pinned already stays, unless UPGRADE=--upgrade.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' $(UPGRADE)
MAKEFLAGS += --no-print-directory
# uv leaves libraries uncompiled. Where this is set, every process would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-training demo test search test-training bench soak wire image test-image base-image lint format docs lock audit synth deploy destroy clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: .venv/.installed  ## Set up what the demo, the cxr command and cdk need

demo: install  ## Score chest X-rays here, through the whole stack on local AWS: make demo [IMAGES=DIR] [MODEL=DIR]
	@$(BIN)/cxr local demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(MODEL),--bundle "$(MODEL)")

test: $(DEV) .venv/.chromium  ## Run all tests but those of training/
	$(PYTEST)

search: $(DEV)  ## Run the slow tests: those that draw examples with many of them, long runs, faults on the wire
	$(PYTEST) --search

install-training: .venv-training/.installed  ## Install what training/ needs into .venv-training: torch, several GB

# Two processes share the cores. By default, an idle thread of OpenMP would keep its core busy.
test-training: .venv-training/.installed $(DEV)  ## Install torch (several GB), check and test training/
	$(BIN)/mypy --follow-imports silent --python-executable .venv-training/bin/python training tests/training
	OMP_WAIT_POLICY=PASSIVE .venv-training/bin/pytest --numprocesses 2 --dist loadgroup --confcutdir tests/training tests/training

bench: $(DEV) .venv-training/.bench  ## Measure it all beside the original's way: make bench [IMAGES=DIR] [QUICK=1]
	$(BIN)/python -m benchmarks $(if $(IMAGES),--images "$(IMAGES)") $(if $(QUICK),--quick)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.scaling)

soak: $(DEV)  ## Random faults and damaged images for a long time: make soak [SECONDS=2400]
	$(BIN)/python -m reliability $(SECONDS)

wire: $(DEV)  ## Score 2,000 images on local AWS with faults on the wire: make wire [IMAGES=DIR]
	$(BIN)/python -m reliability.wire $(if $(IMAGES),--images-from "$(IMAGES)")

image: install  ## Build the classifier's image and score an X-ray in it: make image [XRAY=FILE] [BASE_IMAGE=NAME] [MODEL=DIR]
	$(BIN)/python -m tools.build_image $(if $(XRAY),--xray "$(XRAY)") $(if $(BASE_IMAGE),--base "$(BASE_IMAGE)") $(if $(MODEL),--model "$(MODEL)")

test-image: image $(DEV)  ## Build the image, and test the pipeline with the classifier in its containers
	$(BIN)/pytest --ignore tests/training -m container --image chest-xray-classifier

base-image: install  ## Pull the newest base of the image, and print the setting that pins it: make base-image [BASE_IMAGE=NAME]
	@$(BIN)/python -m tools.newest_base $(if $(BASE_IMAGE),--base "$(BASE_IMAGE)")

lint: $(DEV)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy app.py stacks lambdas benchmarks reliability tools/build_image.py tools/newest_base.py containers/classifier/classifier cxr tests/*.py
	$(BIN)/hadolint containers/classifier/Dockerfile

format: $(DEV)  ## Put the code into the house's form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(DEV)  ## Write the tables in docs/ that repeat what the code says
	JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION=20 $(BIN)/python -m tools.tables

audit: $(DEV)  ## Findings of security checkers against the docs; known vulnerabilities, where the network allows
	JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION=20 $(BIN)/python -m tools.audit

lock: $(DEV)  ## Pin every library, with hashes, for what the *.in files ask
	$(LOCK) requirements-uv.in --output-file requirements-uv.txt
	$(LOCK) containers/classifier/requirements.in --output-file containers/classifier/requirements.txt
	$(LOCK) requirements.in --constraints containers/classifier/requirements.txt --output-file requirements.txt
	$(LOCK) requirements-dev.in --output-file requirements-dev.txt
	$(LOCK) training/requirements.in --constraints containers/classifier/requirements.txt --output-file training/requirements.txt
	$(LOCK) benchmarks/requirements.in --constraints training/requirements.txt --output-file benchmarks/requirements.txt

synth: install  ## Write the CloudFormation template to cdk.out: make synth [ARGS="-c shards=10"]
	npx cdk synth --quiet $(ARGS)

deploy: install  ## Deploy to the AWS account of your credentials: make deploy [STACK=NAME] [ARGS="-c settings=FILE"]
	npx cdk deploy -c stackName="$(STACK)" $(ARGS)

destroy: install  ## Say which data stay, then delete the stack: make destroy [STACK=NAME]
	@$(BIN)/python -m tools.on_delete "$(STACK)"
	npx cdk destroy -c stackName="$(STACK)" $(ARGS)

clean:  ## Remove all that make has made here
	rm -rf .venv .venv-training node_modules cdk.out build *.egg-info

.venv/.installed: requirements-uv.txt requirements.txt containers/classifier/requirements.txt package-lock.json pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@node -e 'process.versions.node.split(".")[0] >= 20 || process.exit(1)' || { echo "needs Node.js 20 or later"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-uv.txt
	@$(INSTALL) .venv -r requirements.txt || \
		{ echo "uv does not read pip's settings. With a mirror of PyPI: UV_DEFAULT_INDEX=ADDRESS make ..."; exit 1; }
	$(INSTALL) .venv --no-deps -e .
	npm ci --silent
	@touch $@

$(DEV): .venv/.installed requirements-dev.txt
	$(INSTALL) .venv -r requirements-dev.txt
	@touch $@

# The tests of the report need Chromium, Debian's or Playwright's. Where there is neither, they are skipped.
.venv/.chromium: $(DEV)
	@command -v chromium >/dev/null || \
		{ curl --silent --max-time 10 --output /dev/null https://cdn.playwright.dev && $(BIN)/playwright install chromium; } || true
	@touch $@

.venv-training/.bench: .venv-training/.installed benchmarks/requirements.txt
	$(INSTALL) .venv-training -r benchmarks/requirements.txt
	@touch $@

.venv-training/.installed: .venv/.installed training/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-training
	$(INSTALL) .venv-training -r training/requirements.txt
	$(INSTALL) .venv-training --no-deps -e .
	@touch $@
