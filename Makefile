# `make run` and `make test` work on a clean Debian or Ubuntu with Python 3.11+; both set everything up first.

PY := .venv/bin/python
DEMO := gatepost.demo.yaml
# More for pytest: make test ARGS="-k queue -x"
ARGS :=
# Test processes at once: most tests with real servers wait more than they work.
JOBS := 6

JOBS_CHART := 2
IMAGE_TEST := tests/chart/test_image.py

# Tests and benchmarks start many processes, which would compile everything anew where the environment says so.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-fast lint chart chart-full chart-files image image-test e2e bench bench-asked bench-filtered bench-plugins bench-depth bench-outage bench-queue bench-postgres day durability fuzz publish lock public-names clean setup-run setup-test setup-full

help:
	@echo "make run        set up, then start Gatepost on 127.0.0.1:2525 (foreground, Ctrl-C drains and ends it)"
	@echo "make test       set up, install the servers the tests talk to, run all tests; builds and runs the image, too"
	@echo "make test-fast  unit tests only"
	@echo "make lint       ruff, mypy, import layers"
	@echo "make chart      the Helm chart: schema, both Helms, Kubernetes' schemas, rules that objects keep, alerts"
	@echo "make chart-full dead values, custom resources, checkov, a release's life, the container image, a version in a registry, and the chart's pod run by podman (needs root)"
	@echo "make image      build the container image localhost/gatepost:test (BASE=... for another base)"
	@echo "make image-test      build it and run it: size, rights, its parts, a message taken, its end (a part of make test)"
	@echo "make e2e        install, test, change, restart and remove the chart in the cluster that kubectl knows (IMAGE=...)"
	@echo "make publish    image and signed chart into a registry (ARGS=\"--registry HOST/PATH --sign-key NAME\")"
	@echo "make chart-files      write the chart's schema and README anew, after a change of options or values"
	@echo "make bench      Gatepost and Postfix side by side (ARGS=\"--messages 2000 --rounds 3\")"
	@echo "make bench-filtered   the same with filters: DNS lists, greylist, SPF, DKIM, DMARC"
	@echo "make bench-asked      what a milter and a policy service cost, beside Postfix asking the same ones"
	@echo "make bench-plugins    what each plugin costs a message"
	@echo "make bench-outage     how fast a backlog leaves after an outage, and how long a message takes, beside Postfix"
	@echo "make bench-depth      what a queue of a million messages costs in memory, and how soon mail is taken with it"
	@echo "make bench-queue      listing a queue of 100,000 messages, and a restart with it, beside Postfix"
	@echo "make bench-postgres   what a queue in PostgreSQL costs, beside one in SQLite"
	@echo "make day        record 20,000 transactions of mixed traffic, replay them, check what is printed (ARGS=\"--seed 2\")"
	@echo "make fuzz       hostile input that nobody has tried before; make test feeds the same each time"
	@echo "make durability kill, cut and fill up until something is lost; writes docs/durability.md (ARGS=\"--rounds 5\")"
	@echo "make lock       write the lock files anew from pyproject.toml"
	@echo "make public-names     write the file of the SDK's public names anew, after a change of them"
	@echo "make clean      remove what was made here, the demo's mail included"

setup-run:
	@tools/setup.sh run

setup-test:
	@tools/setup.sh test

setup-full:
	@tools/setup.sh full

run: setup-run
	@tools/first-message.sh
	@exec .venv/bin/gatepost run -c $(DEMO)

test: setup-test
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup-test
	$(PY) -m pytest -m "not slow" $(ARGS)

lint: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

chart: setup-test
	$(PY) -m pytest -n $(JOBS_CHART) --dist loadfile tests/chart --ignore=$(IMAGE_TEST) $(ARGS)

chart-full: setup-full
	$(PY) -m pytest $(IMAGE_TEST) $(addprefix tests/chart/full_,values.py fuzz.py custom.py checkov.py release.py publish.py pod.py stateless.py evacuation.py e2e.py) $(ARGS)

image-test: setup-test
	$(PY) -m pytest $(IMAGE_TEST) $(ARGS)

image: setup-test
	tools/image.sh

e2e:
	IMAGE="$(IMAGE)" tools/e2e.sh

bench: setup-test
	$(PY) -m tests.bench.bench $(ARGS)

bench-asked: setup-test
	$(PY) -m tests.bench.asked $(ARGS)

bench-plugins: setup-test
	$(PY) -m tests.bench.plugins $(ARGS)

bench-outage: setup-test
	$(PY) -m tests.bench.outage $(ARGS)

bench-depth: setup-test
	$(PY) -m tests.bench.depth $(ARGS)

bench-filtered: setup-test
	$(PY) -m tests.bench.filtered $(ARGS)

bench-queue: setup-test
	$(PY) -m tests.bench.listing $(ARGS)

bench-postgres: setup-test
	$(PY) -m tests.bench.shared $(ARGS)

day: setup-test
	$(PY) -m tests.traffic.check $(ARGS)

fuzz: setup-test
	$(PY) -m pytest -n $(JOBS) --hypothesis-profile=random tests/fuzz $(ARGS)

durability: setup-test
	$(PY) -m tests.crash.durability $(ARGS)

UV := $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)
COMPILE = $(UV) pip compile pyproject.toml --extra geoip --extra ldap --extra milter --extra postgres --extra redis --extra setup --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header -q

lock:
	@test -x "$(UV)" || { echo "make lock needs uv: https://docs.astral.sh/uv/"; exit 1; }
	$(COMPILE) -o requirements.lock
	$(COMPILE) --extra dev -o requirements-dev.lock

publish: setup-full
	$(PY) tools/publish.py $(ARGS)

chart-files: setup-test
	$(PY) -m tests.chart.files

public-names: setup-test
	$(PY) -m tests.support.public_names

clean:
	rm -rf .venv build dist *.egg-info var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
