# make demo       draw a picture: installs the runtime into .venv-demo, no PyTorch
# make serve      an HTTP server with the small model on http://127.0.0.1:8000: installs it into .venv-serve, no PyTorch
# make test       the quick tests, in .venv: about five minutes on two cores
# make test-all   these and the slow ones: more exports, real engine builds, diffusers beside every plan
# make check      ruff, mypy and clang-format, in .venv
# make bench      compare this machine with its peers, and write a report; DEVICE=cuda for a GPU, MODELS=shapes for less
# make native     the library for C and C++ and latentrt-draw, in out/native; needs cmake and a compiler, see docs/embedding.md

PYTHON ?= python3
DEVICE ?= cpu
MODELS ?= shapes medium sd15

.PHONY: demo serve test test-all check bench native clean

demo: .venv-demo/installed
	.venv-demo/bin/latentrt generate "a large red star on a blue background" --seed 1 -o out/demo.png

serve: .venv-serve/installed
	.venv-serve/bin/latentrt serve

test: .venv/installed
	.venv/bin/pytest -n 2 --dist loadfile -m "not slow"

test-all: test
	.venv/bin/pytest -n 2 --dist loadfile -m slow -vv

check: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	find native -name '*.[ch]pp' ! -name '*.gen.hpp' ! -name 'python_tables.*' ! -name 'unicode_tables.*' -print0 | xargs -0 .venv/bin/clang-format --dry-run -Werror

bench: .venv/installed
	.venv/bin/python -m benchmarks.bench --device $(DEVICE) --models $(MODELS)

native:
	native/fetch_headers.sh out/native/include
	cmake --log-level=WARNING -S native -B out/native -DLATENTRT_TESTS=ON -DLATENTRT_WERROR=ON
	cmake --build out/native --parallel 2

.venv-demo/installed: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

.venv-serve/installed: pyproject.toml
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/pip install --quiet --disable-pip-version-check -e '.[cpu,serve]'
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps k-diffusion==0.1.1.post1 open-clip-torch  # for tests, without what they need
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-serve out build dist *.egg-info
