# make demo   set up, then the whole way on the embedded data: from records to a report, in results/demo
# make test   set up, then the tests
# make check  formatting, lint, types, layers, tests: what has to pass
# make image  a container's image; make run-in-docker SPEC=specs/demo.txt runs a spec in it: docs/containers.md
# Everything lives in .venv, which is made once and reused until setup.cfg changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCKER ?= docker
IMAGE ?= detectkit
# For instance: make image IMAGE=detectkit:cuda IMAGE_ARGS='--build-arg RUNTIME=cuda'
IMAGE_ARGS ?=
# Empty: no GPU in the container; else all, or device=0
GPUS ?=
PROTOS := $(shell find proto -name '*.proto')
READY := $(VENV)/.ready
MESSAGES := detectkit/spec/schema.binpb

# Tests in up to four processes: each holds PyTorch, about 1 GB.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: setup demo test test-slow check format docs image run-in-docker image-check clean

setup: $(READY) $(MESSAGES)

$(READY): setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(MESSAGES): $(PROTOS) $(READY)
	$(BIN)/pip install --quiet 'grpcio-tools >= 1.80'
	$(BIN)/python -c 'import setup; setup.generate()'

demo: setup
	$(BIN)/detectkit run -e specs/demo.txt

test: setup
	$(PYTEST) -m 'not slow'

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/black --check --quiet -l 110 detectkit tests bench docker setup.py --extend-exclude '_pb2\.pyi?$$'
	$(BIN)/flake8 detectkit tests bench docker setup.py
	$(BIN)/mypy
	$(PYTEST) -m 'not slow'

format: setup
	$(BIN)/black --quiet -l 110 detectkit tests bench docker setup.py --extend-exclude '_pb2\.pyi?$$'

docs: setup
	$(BIN)/python -c 'from detectkit.spec import markdown; print(markdown(), end="")' > docs/spec.md

image:
	$(DOCKER) build -f docker/Dockerfile -t $(IMAGE) --build-arg VERSION=$(shell sed -n 's/^version = //p' setup.cfg) \
		--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) $(IMAGE_ARGS) .

# The results belong to who runs this; -it, so that the bar is drawn and Ctrl-C arrives, where there is a terminal.
run-in-docker:
	$(if $(SPEC),,$(error SPEC is missing: make run-in-docker SPEC=specs/demo.txt))
	$(if $(filter specs/%,$(SPEC)),,$(error SPEC=$(SPEC) is not in specs/, the folder that the container sees))
	@mkdir -p data results
	$(DOCKER) run --rm --init $$(test -t 0 && test -t 1 && echo -it) $(if $(GPUS),--gpus $(GPUS)) \
		--user $$(id -u):$$(id -g) --shm-size 2g --stop-timeout 60 \
		-v "$(CURDIR)/data:/data" -v "$(CURDIR)/results:/results" -v "$(CURDIR)/specs:/workspace/specs:ro" \
		$(IMAGE) run -e $(SPEC)

# As root, without Docker: what docker/Dockerfile says, on a bare Debian tree. PyTorch comes from where pip finds the rest.
image-check:
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTHON) docker/check.py --build-arg TORCH_INDEX= $(IMAGE_ARGS)

# Not results: hours of training may be in there.
clean:
	rm -rf $(VENV) build *.egg-info
