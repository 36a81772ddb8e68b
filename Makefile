# Everything a user or a developer does with this checkout. `make` alone prints the list.
# uv is used where it is installed and brought along where it is not (scripts/uv.sh).

UV := scripts/uv.sh
RUN := $(UV) run --no-sync
SYNC := $(UV) sync --inexact --locked

.DEFAULT_GOAL := help
.PHONY: help prod-setup dev-setup sync sync-demo sync-all lock start \
	test test-basic test-sdk test-vad test-system test-long test-vllm check fmt lint types generate \
	bench bench-steps bench-stream bench-offline bench-report clean clean-all

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Environments

prod-setup: ## Install exactly what serving needs; removes everything else
	$(UV) sync --locked --no-dev

dev-setup: ## Install the development tools and the commit hooks
	$(SYNC)
	$(RUN) pre-commit install

sync: ## Install what serving needs; keeps what is already there
	$(SYNC) --no-dev

sync-demo: ## The same, and the SDK for the programs in demo/
	$(SYNC) --no-dev --extra demo

sync-all: ## All extras that fit together (vllm and qwen-asr exclude one another)
	$(SYNC) --extra all

lock: ## Renew uv.lock after a change of pyproject.toml
	$(UV) lock

# Serve

start: sync ## Install and serve on port 8001 (SERVER_PORT changes it)
	exec .venv/bin/python main.py

# Test

test: ## The default suite: real SDK, real recogniser, no GPU, no network
	$(SYNC)
	$(RUN) pytest --ignore=tests/system --ignore=tests/vllm --ignore=tests/words

test-basic: ## Only the fast part: unit, protocol and session tests
	$(SYNC)
	$(RUN) pytest tests/unit tests/protocol tests/session

test-vad: ## Only what concerns speech detection and endpointing
	$(SYNC)
	$(RUN) pytest --ignore=tests/system --ignore=tests/vllm --ignore=tests/words -k "vad or endpoint"

test-sdk: ## Old and new SDK versions, each in its own environment under .venvs/
	$(SYNC)
	scripts/test_sdk.sh

test-system: ## The demo page in a real browser; installs Debian's chromium when run as root
	$(SYNC)
	scripts/test_system.sh

test-long: ## Three hours of speech as one recording, and the memory it takes; half an hour or more
	$(SYNC)
	$(RUN) python scripts/long_recording.py

# Keep it in order

test-vllm: ## Qwen3-ASR in real vLLM on the processor, with a tiny trained checkpoint; makes its own environment
	$(SYNC)
	scripts/test_vllm.sh

check: ## All that CI asks of a change: format, lint, types, generated files, tests, the wheel
	scripts/check.sh

fmt: ## Format and repair what can be repaired
	$(RUN) ruff format
	$(RUN) ruff check --fix

lint: ## Formatting and lint, without changing anything
	$(RUN) ruff format --check
	$(RUN) ruff check

types: ## Static types
	$(RUN) mypy

generate: ## Write the files made from code: .env.example, docs/configuration.md
	$(RUN) python scripts/generate.py

bench: ## How many sessions one core carries
	$(RUN) python bench/frontend.py

bench-steps: ## What a step costs as speech goes on, beside re-encoding (environment of test-vllm)
	"$$(scripts/vllm_env.sh)" bench/step_cost.py

bench-stream: ## Latency of partials and finals, beside other designs (environment of test-vllm)
	"$$(scripts/vllm_env.sh)" bench/streaming.py

bench-offline: ## RTF, WER and CER of recordings, by the embedded engine
	$(RUN) python bench/offline.py tests/data/speech/prompts.jsonl --engine pocketsphinx
	$(RUN) python bench/offline.py tests/data/speech/prompts.jsonl --engine pocketsphinx --at-once 4
	$(RUN) python bench/offline.py tests/data/speech/paragraphs.jsonl --engine pocketsphinx

bench-report: ## Tables and plots of docs/benchmarks.md from the newest results
	$(RUN) python bench/frontend.py --report
	$(RUN) python bench/step_cost.py --report
	$(RUN) python bench/streaming.py --report
	$(RUN) python bench/offline.py --report

clean: ## Remove caches and build results
	rm -rf build dist htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

clean-all: clean ## The same, and all environments
	rm -rf .venv .venvs
