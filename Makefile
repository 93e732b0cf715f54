# Each environment is installed once, and again when pyproject.toml or a source file changes.
PYTHON ?= python3
SOURCES := pyproject.toml $(shell find sdk/uniecs trainer export kernels -type f -not -path '*/__pycache__/*')

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: .venv/installed
	.venv/bin/uniecs demo

test: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv .venv-test build/lib build/bdist.* *.egg-info .pytest_cache .mypy_cache .ruff_cache

# build/lib would carry deleted modules into the next wheel.
.venv/installed: $(SOURCES)
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	rm -rf build/lib
	.venv/bin/pip install --quiet ".[parquet]"
	touch $@

.venv-test/installed: $(SOURCES)
	test -x .venv-test/bin/pip || $(PYTHON) -m venv .venv-test
	rm -rf build/lib
	.venv-test/bin/pip install --quiet torch==2.13.0
	.venv-test/bin/pip install --quiet ".[dev,tensorrt-test]" || { .venv-test/bin/pip install --quiet ".[dev]" && \
	    echo "without TensorRT for RTX its tests are skipped"; }
	touch $@
