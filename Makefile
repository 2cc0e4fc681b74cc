# make run     replay the bundled capture, then a burst of 64-byte UDP at line rate; say what became of every packet
# make test    formatting, lint, types, tests
# make test-slow   the tests marked slow: proofs over the whole machine
# make bench   speed of the simulator

.PHONY: run test test-slow lint bench clean
NICSCOPE = .venv/bin/nicscope

run: .venv/.ready
	$(NICSCOPE) run napi --traffic traffic/programs.pcapng --speed 100 --out runs/capture
	$(NICSCOPE) run napi --size 64 --rate line --count 2000 --out runs/burst

test: lint
	.venv/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/.ready
	.venv/bin/python -m pytest -n 2 --dist worksteal -m slow

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/.ready
	$(NICSCOPE) bench

.venv/.ready: pyproject.toml sim/build/bootstrap.sh
	bash sim/build/bootstrap.sh

clean:
	rm -rf .venv .cache runs
