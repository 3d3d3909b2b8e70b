# make demo    draw a picture: installs the runtime into .venv-demo, no PyTorch
# make test    the test suite, in .venv
# make check   ruff and mypy, in .venv

PYTHON ?= python3

.PHONY: demo test check clean

demo: .venv-demo/installed
	.venv-demo/bin/latentrt generate "a large red star on a blue background" --seed 1 -o out/demo.png

test: .venv/installed
	.venv/bin/pytest -n 2 --dist loadfile

check: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv-demo/installed: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-demo out build dist *.egg-info
