# make demo   set up, then the whole way on the embedded data: records, training, evaluation, pictures
# make test   set up, then the tests
# make check  formatting, lint, types, layers, tests: what has to pass
# Everything lives in .venv, which is made once and reused until setup.cfg changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= results/demo
PROTOS := $(shell find proto -name '*.proto')
READY := $(VENV)/.ready
MESSAGES := detectkit/spec/schema.binpb

.PHONY: setup demo test test-slow check format docs clean

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
	$(BIN)/detectkit sample-data -o $(DEMO)/data
	$(BIN)/detectkit convert -d specs/demo/convert.txt -o $(DEMO)/records/digits
	$(BIN)/detectkit train -e specs/demo/train.txt -r $(DEMO)/train
	$(BIN)/detectkit evaluate -e specs/demo/train.txt -m $(DEMO)/train/weights/model-best.safetensors -r $(DEMO)/evaluation
	$(BIN)/detectkit infer -e specs/demo/infer.txt -m $(DEMO)/train/weights/model-best.safetensors -i $(DEMO)/data/image_2 -r $(DEMO)/detections

test: setup
	$(BIN)/pytest -m 'not slow'

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/black --check --quiet -l 110 detectkit tests bench setup.py --extend-exclude '_pb2\.pyi?$$'
	$(BIN)/flake8 detectkit tests bench setup.py
	$(BIN)/mypy
	$(BIN)/pytest -m 'not slow'

format: setup
	$(BIN)/black --quiet -l 110 detectkit tests bench setup.py --extend-exclude '_pb2\.pyi?$$'

docs: setup
	$(BIN)/python -c 'from detectkit.spec import markdown; print(markdown(), end="")' > docs/spec.md

clean:
	rm -rf $(VENV) build *.egg-info results
