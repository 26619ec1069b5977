# Run `make` alone for the list of targets.
.DEFAULT_GOAL := help
.PHONY: help up down doctor test torture faults fuzz crash year lint sqlx sqlx-check bench ci
MAKEFLAGS += --no-print-directory
target := $(or $(CARGO_TARGET_DIR),target)
# Queries are checked against .sqlx, not against whatever database the environment names.
export SQLX_OFFLINE = true

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: ## Install what is missing, build, start everything and stay until Ctrl-C (ARGS="--listen 127.0.0.1:8081")
	@scripts/install.sh
	@cargo build --locked --profile up --bin hothouse
	@HOTHOUSE_INIT="$$(scripts/init.sh)" && export HOTHOUSE_INIT && exec $(target)/up/hothouse up $(ARGS)

down: ## Drain and stop what `make up` started
	@exec $(target)/up/hothouse down $(ARGS)

doctor: ## Say what is missing on this machine and how to get it
	@cargo build --locked --profile up --bin hothouse
	@exec $(target)/up/hothouse doctor $(ARGS)

test: ## Every test, with Redis, Postgres and Docker of its own (ARGS="-p worker")
	@scripts/test.sh $(ARGS)

torture: ## Kill, freeze, wipe and cut real processes, then prove that nothing broke (SEED=1 SECONDS=600 FAULTS=kills|freeze)
	@SEED="$(SEED)" SECONDS_LONG="$(SECONDS)" FAULTS="$(FAULTS)" scripts/torture.sh

faults: ## Take away what is under sandboxes, at full size: 40 killed at once, 1,000 jobs, 1,000 kills (CYCLES=1000)
	@HOTHOUSE_FAULTS=full HOTHOUSE_KILL_CYCLES="$(or $(CYCLES),1000)" scripts/test.sh -p hothouse -p worker \
		-E 'test(/^faults::/) + test(/^kill_cycles::/)' --test-threads 1 --success-output final

fuzz: ## Say anything to both ends of a sandbox's pipe, for SECONDS (300) each
	@SECONDS_LONG="$(SECONDS)" scripts/fuzz.sh

crash: ## Drop a turn at random points and prove that no finished call is made again (POINTS=10000)
	@HOTHOUSE_CRASH_POINTS="$(or $(POINTS),10000)" scripts/test.sh -p worker -E 'test(no_call_in_the_journal)' --success-output final

year: ## Every zone's clocks from 1970 to 2040, and a year of 1,000 schedules, against an independent implementation of cron
	@HOTHOUSE_SWEEP=full HOTHOUSE_SIMULATION=full scripts/test.sh -p common -p scheduler \
		-E 'test(/around_every_change_of_the_clocks/) + test(/^year::/)' --success-output final

lint: ## Formatting, file rules and clippy, without any service
	@cargo fmt --all --check
	@scripts/tidy.sh
	@scripts/config-docs.sh --check
	@cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

sqlx: ## Write the offline query data in .sqlx anew
	@scripts/sqlx.sh prepare

sqlx-check: ## Compare .sqlx with what a real database says about every query
	@scripts/sqlx.sh check

bench: ## Measure a running Hothouse (ARGS="submit")
	@cargo build --locked --release --bin hothouse
	@exec $(target)/release/hothouse bench $(ARGS)

ci: ## What must hold before a change lands
	@.ci/run
