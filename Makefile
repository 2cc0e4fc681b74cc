# make run     every path with the same traffic, side by side: the bundled capture, then 64-byte UDP at line rate
# make test    formatting, lint, types, tests
# make test-slow   the tests marked slow: proofs over the whole machine
# make bench   speed of the simulator

.PHONY: run test test-slow lint bench clean
NICSCOPE = .venv/bin/nicscope
WAYS = interrupt,napi,busypoll,tcp,napi:rawdrop,xdp,af-xdp,dpdk

run: .venv/.ready
	$(NICSCOPE) compare --paths $(WAYS) --report --out runs/compare

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
