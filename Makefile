# make        set up .venv (Debian packages, locked Python packages, the lips graph)
# make demo   dub a self-made clip to Spanish, into out/demo/
# make test   lint, types and all tests
# make clients  build the Node and Go clients of `dub`
# make bench  every experiment and the report out/bench/index.html: 14 minutes; QUICK=1 for 2, PROFILE=cpu for another
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell command -v $(p)),$(p))))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
CLIP ?=
PROFILE ?=
QUICK ?=

.PHONY: setup demo test lint clients bench bench-cpu bench-gpu bench-live bench-memory bench-segmentation bench-soak lock clean

setup: $(VENV)/.ready

# One list of what is missing, so that a machine that has everything is not touched and needs no root.
define debian
@missing=$$($(PYTHON) docker/debian_packages.py $(1)) && if [ -n "$$missing" ]; then \
  echo "installing Debian packages: $$missing"; \
  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

$(VENV)/.ready: pyproject.toml requirements.lock export/lips_lite.py
	$(call debian)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c requirements.lock -e '.[serve,perf]'
	$(PIP) install -q -c requirements.lock --no-deps scikit-image
	$(BIN)/polylip export lite
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready docker/kubernetes/tools/package-lock.json
	$(call debian,bench clients test)
	$(PIP) install -q -c requirements.lock -e '.[test]'
	$(BIN)/python -m polylip.serving.cpu_torchaudio
	$(BIN)/python tests/kubernetes_tools.py
	touch $@

demo: setup
	$(BIN)/python -m polylip.perf.demo_clip out/demo/input.mp4
	$(BIN)/polylip dub out/demo/input.mp4 --to es -o out/demo/dubbed.mp4
	@echo "watch out/demo/dubbed.mp4; look at out/demo/contact_sheet.png"

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/ns && ln -sfn ../.. build/ns/polylip
	MYPYPATH=build/ns $(BIN)/mypy -p polylip.client -p polylip.serving -p polylip.export -p polylip.perf

test: lint
	POLYLIP_ALL_TOOLS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone"
	POLYLIP_ALL_TOOLS=1 $(BIN)/python -m pytest -m alone

clients:
	$(call debian,clients)
	$(MAKE) -C client/node
	$(MAKE) -C client/go

# torch among them, which the demo does without
$(VENV)/.ready-bench: $(VENV)/.ready
	$(call debian,bench)
	$(PIP) install -q -c requirements.lock -e '.[serve,cpu,speech,export,perf]'
	$(BIN)/python -m polylip.serving.cpu_torchaudio
	touch $@

bench: $(VENV)/.ready-bench
	$(BIN)/python -m polylip.perf.bench $(if $(PROFILE),--profile $(PROFILE)) $(if $(QUICK),--quick) \
	  $(if $(CLIP),--clip $(CLIP)) --out out/bench

bench-cpu: $(VENV)/.ready-bench
	$(BIN)/python -m polylip.perf.picture --out out/bench
	$(BIN)/python -m polylip.perf.speech --out out/bench

bench-gpu: $(VENV)/.ready-bench
	$(BIN)/python -m polylip.perf.networks_gpu --out out/bench
	$(BIN)/python -m polylip.perf.speech_gpu --out out/bench

bench-memory: setup
	$(BIN)/python -m polylip.perf.memory --out out/bench

bench-soak: $(VENV)/.ready
	$(BIN)/python -m polylip.perf.soak --out out/bench

bench-live: $(VENV)/.ready
	$(BIN)/python -m polylip.perf.live --out out/bench

bench-segmentation: $(VENV)/.ready-bench
	$(BIN)/python -m polylip.perf.segmentation --out out/bench

lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -q '.[test]'
	build/lock/bin/python -m pip freeze --exclude polylip | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) build out
