# `make help` lists what there is. Python 3.11 and make are all that has to be on the machine.

PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help nightly plan show rollback release repair retention forget forget-sweep compact-registry test test-faults test-faults-input test-faults-publish test-faults-night lint types bench-night bench-recipe bench-training bench-training-best \
  bench-training-growth bench-training-ranks bench-training-kills bench-topk bench-gpu \
  bench-fold-in bench-popular bench-ingest bench-planner bench-warm up down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Nightgraph needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked versions into .venv (a few minutes the first time)"
	@$(PIP) -e .
	@touch $@

.venv/dev: .venv/runtime
	@echo "installing what tests and checks need"
	@$(PIP) -e '.[dev]'
	@touch $@

.venv/bench: .venv/dev
	@echo "installing the peers that benchmarks run beside"
	@$(PIP) -e '.[dev,bench]'
	@touch $@

NIGHT = $(if $(RATINGS),--ratings "$(RATINGS)") $(if $(ITEMS),--items "$(ITEMS)") $(if $(STORE),--store "$(STORE)") \
  $(if $(AS_OF),--as-of "$(AS_OF)") $(if $(RANKS),--ranks "$(RANKS)") $(if $(K),--k "$(K)") \
  $(if $(filter 1 yes true,$(FORCE)),--force) $(if $(SET),--set $(SET))

nightly: .venv/runtime ## a whole night; RATINGS= ITEMS= STORE= AS_OF= RANKS= K= FORCE=1 SET="group.field=value ..."
	@$(BIN)/python -m flows.by_hand $(NIGHT)

plan: .venv/runtime ## what that night would take, by its footers: memory, disk, time; the same options
	@$(BIN)/python -m flows.plan $(NIGHT)

# $$USER is the command line's, and comes through the environment as it was typed; alone it would be the shell's own.
show: .venv/runtime ## one person's likes and list, with titles, tiers and reasons; USER=42 STORE= RATINGS=
	@$(BIN)/python -m flows.show $(if $(filter command,$(origin USER)),--user="$$USER") \
	  $(if $(RATINGS),--ratings "$(RATINGS)") $(if $(STORE),--store "$(STORE)")

OF_STORE = $(if $(RATINGS),--ratings "$(RATINGS)") $(if $(STORE),--store "$(STORE)")
# As they were typed, whatever marks are in them.
ASKED_BY = $(if $(WHO),--who="$$WHO") $(if $(REASON),--reason="$$REASON")

rollback: .venv/runtime ## readers back to a kept night, and held there; DATE= (empty: lists them) VERSION= REASON= WHO= STORE=
	@$(BIN)/python -m flows.rollback_by_hand rollback $(if $(DATE),--date "$(DATE)") \
	  $(if $(VERSION),--version "$(VERSION)") $(ASKED_BY) $(OF_STORE)

release: .venv/runtime ## readers on to the newest night, after a rollback; REASON= WHO= STORE=
	@$(BIN)/python -m flows.rollback_by_hand release $(ASKED_BY) $(OF_STORE)

repair: .venv/runtime ## LATEST.json anew from the log, where it is damaged, gone or behind; STORE=
	@$(BIN)/python -m flows.rollback_by_hand repair $(OF_STORE)

retention: .venv/runtime ## which nights' files nobody can need any more; KEEP_DAYS=30 STORE=; APPLY=1 removes them
	@$(BIN)/python -m flows.retention_by_hand $(OF_STORE) $(if $(KEEP_DAYS),--keep-days "$(KEEP_DAYS)") \
	  $(if $(filter 1 yes true,$(APPLY)),--apply)

# The id comes through the environment, as show's does, and stands in no command line of ours.
forget: .venv/runtime ## leave people out for ever, of kept nights too; USER=42 or USERS=file (an id a line) STORE= ALWAYS=1
	@$(if $(filter command,$(origin USER)),NIGHTGRAPH_FORGET="$$USER") $(BIN)/python -m flows.forget_by_hand \
	  $(if $(USERS),--users "$(USERS)") $(if $(RATINGS),--ratings "$(RATINGS)") $(if $(STORE),--store "$(STORE)") \
	  $(if $(filter 1 yes true,$(ALWAYS)),--always)

forget-sweep: .venv/runtime ## remove what forgetting replaced and is due by now; every day, by cron; STORE=
	@$(BIN)/python -m flows.forget_by_hand --sweep \
	  $(if $(RATINGS),--ratings "$(RATINGS)") $(if $(STORE),--store "$(STORE)")

compact-registry: .venv/runtime ## what rows of the id registry nobody needs; STORE= RATINGS=; APPLY=1 gives them up
	@$(BIN)/python -m flows.compact_by_hand $(if $(RATINGS),--ratings "$(RATINGS)") $(if $(STORE),--store "$(STORE)") \
	  $(if $(filter 1 yes true,$(APPLY)),--apply)

test: .venv/dev ## every test: units, behaviour, Prefect, S3, two training ranks
	@$(BIN)/python -m pytest

lint: .venv/dev ## style and imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: .venv/dev ## type checker
	@$(BIN)/mypy

up: .venv/runtime ## dashboard, schedule and worker on this machine; PORT= STORE=
	@$(BIN)/python deploy/stack.py up $(if $(PORT),--port "$(PORT)") $(if $(STORE),--store "$(STORE)")

down: .venv/runtime ## stop what `make up` started; data stays
	@$(BIN)/python deploy/stack.py down

bench-night: .venv/dev ## whole nights on MovieLens: seconds, memory, quality; DATA=folder of the data sets
	@$(BIN)/python -m benchmarks.night $(if $(DATA),--data "$(DATA)")

bench-recipe: .venv/dev ## why the training defaults are what they are, on validation; DATA= ONLY="ml1m gowalla"
	@$(BIN)/python -m benchmarks.recipe $(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only $(ONLY))

bench-fold-in: .venv/dev ## folded-in rows beside trained ones, by number of events, on validation; DATA= ONLY="ml100k gowalla"
	@$(BIN)/python -m benchmarks.fold_in $(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only $(ONLY))

bench-warm: .venv/dev ## ten nights of MovieLens in a row, cold and from the night before; DATA= ONLY="ml100k"
	@$(BIN)/python -m benchmarks.warm $(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only $(ONLY))

bench-popular: .venv/dev ## how fast a like should age in what is popular, on validation; DATA=
	@$(BIN)/python -m benchmarks.popular $(if $(DATA),--data "$(DATA)")

bench-training: .venv/dev ## operator, step, adjacency, time to the paper's quality, rivals; DATA=
	@$(BIN)/python -m benchmarks.training $(if $(DATA),--data "$(DATA)")

bench-training-best: .venv/dev ## the best quality on Gowalla within half an hour; DATA=
	@$(BIN)/python -m benchmarks.best $(if $(DATA),--data "$(DATA)")

bench-training-growth: .venv/dev ## time an edge and memory against the formula, up to 20 million likes
	@$(BIN)/python -m benchmarks.growth

bench-training-ranks: .venv/dev ## two ranks against one for each split, and that they learn the same; DATA=
	@$(BIN)/python -m benchmarks.ranks $(if $(DATA),--data "$(DATA)")

bench-training-kills: .venv/dev ## 20 killed or hung ranks and agents: recovered to the same bytes, no orphans
	@$(BIN)/python -m benchmarks.kills

bench-topk: .venv/bench ## top-K beside implicit, faiss and torch; growth, exactness, reasons; then memory and ranks; DATA=
	@$(BIN)/python -m benchmarks.topk $(if $(DATA),--data "$(DATA)")
	@$(BIN)/python -m benchmarks.scale

bench-gpu: .venv/dev ## training and top-K on one GPU beside the CPUs, LGConv, the authors' product and plain torch; DATA=
	@$(BIN)/python -m benchmarks.gpu $(if $(DATA),--data "$(DATA)")

bench-ingest: .venv/dev ## 100 M events beside plain Polars, 200 M, a second night, one hash; ROWS= PARTS= SCRATCH=
	@$(BIN)/python -m benchmarks.ingest $(if $(ROWS),--rows "$(ROWS)") $(if $(PARTS),--parts $(PARTS)) \
	  $(if $(SCRATCH),--scratch "$(SCRATCH)")
	@$(if $(PARTS),,$(BIN)/python -m benchmarks.registry)

bench-planner: .venv/dev ## what the planner says a night takes, beside what it took; DATA= ROWS=
	@$(BIN)/python -m benchmarks.planner $(if $(DATA),--data "$(DATA)") $(if $(ROWS),--rows "$(ROWS)")

test-faults: test-faults-input test-faults-publish test-faults-night ## all of these, for some hours, and one table of what was measured
	@$(BIN)/python -m benchmarks.faults.results

test-faults-input: .venv/dev ## 36 corrupt inputs and thousands of mutated files; MUTATIONS=
	@$(BIN)/python -m benchmarks.hostile $(if $(MUTATIONS),--mutations "$(MUTATIONS)")

test-faults-publish: .venv/dev ## races, lost answers, kills at every request, retention, the model; ONLY="races lost kills ..."
	@$(BIN)/python -m benchmarks.faults.publish $(if $(ONLY),--only $(ONLY))

test-faults-night: .venv/dev ## whole nights killed before and after each S3 request, and at drawn moments; EVERY= DRAWN=
	@$(BIN)/python -m benchmarks.faults.night $(if $(EVERY),--every "$(EVERY)") $(if $(DRAWN),--drawn "$(DRAWN)")

clean: ## remove what nights, servers and checks left (keeps .venv)
	@rm -rf var .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
