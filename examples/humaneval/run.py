#!/usr/bin/env python3
"""Runs HumanEval on Hothouse: 164 Python problems, each one job of kind `exec` in a sandbox of its own.

Every canonical solution is submitted together with its tests and must succeed. With --wrong the body of each solution is
replaced: most return nothing, every twentieth never returns; each must fail with `nonzero_exit` or at its limit.

The exit code is 0 when every job ended as expected, 1 when one did not, and 2 when the server could not be used.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

HERE = pathlib.Path(__file__).resolve().parent
TERMINAL = {"succeeded", "failed", "cancelled"}
RIGHT = {"succeeded"}
WRONG = {"nonzero_exit", "timeout"}


class Refused(Exception):
    """The server answered, and what it said will not change by asking again."""


class Server:
    """The API, asked again while it, or what it needs, is away."""

    def __init__(self, address, key, patience):
        self.base = address.rstrip("/") + "/api/v1"
        self.key = key
        self.patience = patience

    def call(self, method, path, body=None, headers=None):
        """One request; a repeated POST carries an Idempotency-Key, so it cannot submit twice."""
        data = None if body is None else json.dumps(body).encode()
        all_headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **(headers or {})}
        give_up = time.monotonic() + self.patience
        while True:
            request = urllib.request.Request(self.base + path, data=data, headers=all_headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                detail = error.read().decode(errors="replace")
                if error.code not in (429, 503) or time.monotonic() > give_up:
                    raise Refused(f"{method} {path}: {error.code} {detail}") from error
                pause = int(error.headers.get("Retry-After") or 1)
            except OSError as error:
                if time.monotonic() > give_up:
                    raise Refused(f"{method} {self.base}{path}: {error}") from error
                pause = 1
            time.sleep(min(pause, 5))

    def jobs(self, run):
        """Every job of a run, page by page."""
        query = {"metadata.run": run, "limit": "200"}
        found = []
        while True:
            page = self.call("GET", "/jobs?" + urllib.parse.urlencode(query))
            found += page["data"]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]


def problems():
    with gzip.open(HERE / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def program(index, problem, is_wrong):
    """The solution and its tests, as one file."""
    body = problem["canonical_solution"]
    if is_wrong:
        body = "    while True: pass\n" if index % 20 == 7 else "    return None\n"
    return f"{problem['prompt']}{body}\n{problem['test']}\ncheck({problem['entry_point']})\n"


def job(index, problem, run, options):
    return {
        "kind": "exec",
        "queue": options.queue,
        "timeout": options.timeout,
        "input": {"language": "python", "code": program(index, problem, options.wrong)},
        "metadata": {"run": run, "task": problem["task_id"]},
    }


def submit(server, run, tasks, options):
    jobs = [job(index, problem, run, options) for index, problem in enumerate(tasks)]
    answer = server.call("POST", "/jobs/batch", {"jobs": jobs}, {"Idempotency-Key": f"humaneval-{run}"})
    refused = [item for item in answer["data"] if "error" in item]
    if refused:
        raise Refused(f"{len(refused)} jobs were refused, the first with {json.dumps(refused[0]['error'])}")


def outcome(found):
    return found["state"] if found["error"] is None or found["state"] != "failed" else found["error"]["code"]


def show(line, is_last=False):
    """Progress: one line that is written over on a terminal, nothing but the last one elsewhere."""
    if sys.stderr.isatty():
        print("\r\x1b[K" + line, end="\n" if is_last else "", file=sys.stderr, flush=True)
    elif is_last:
        print(line, file=sys.stderr)


def wait(server, run, count, options):
    """Looks until every job has ended or the time is over; answers the jobs as they are then."""
    begun = time.monotonic()
    while True:
        found = server.jobs(run)
        states = collections.Counter(one["state"] for one in found)
        ended = sum(states[state] for state in TERMINAL)
        is_over = ended == count or time.monotonic() - begun > options.limit
        width = 30 * ended // count
        counts = " ".join(f"{name} {states[name]}" for name in sorted(states))
        line = f"[{'#' * width}{'.' * (30 - width)}] {ended}/{count} in {time.monotonic() - begun:.0f} s: {counts}"
        show(line, is_over)
        if is_over:
            return found
        time.sleep(0.5)


def report(server, found, tasks, seconds, options):
    """Prints what came out; answers whether all of it was expected."""
    expected = WRONG if options.wrong else RIGHT
    by_task = collections.defaultdict(list)
    for one in found:
        by_task[one["metadata"]["task"]].append(one)
    rows = []
    for problem in tasks:
        mine = by_task.get(problem["task_id"], [])
        what = outcome(mine[0]) if len(mine) == 1 else f"{len(mine)} jobs"
        rows.append((problem["task_id"], what, mine[0] if mine else None))
    unexpected = [row for row in rows if row[1] not in expected]

    for task, what, one in rows if options.all else unexpected[:20]:
        print(f"{task:<15} {what:<14} {one['id'] if one else '':<37} {detail(server, one) if what not in expected else ''}")
    print(f"{'outcome':<16}{'jobs':>5}")
    for what, count in sorted(collections.Counter(what for _, what, _ in rows).items()):
        print(f"{what:<16}{count:>5}{'' if what in expected else '   not expected'}")
    lost = sum(one["losses"] for one in found)
    again = sum(one["attempt"] > 1 for one in found)
    cpu = sum(one["usage"]["cpu_ms"] for one in found) / 1000
    rate = len(found) / seconds if seconds else 0
    print(f"{len(rows) - len(unexpected)} of {len(rows)} as expected in {seconds:.1f} s ({rate:.1f} jobs a second, "
          f"{cpu:.1f} s of CPU; {again} ran more than once, {lost} workers lost under them)")
    return not unexpected


def detail(server, one):
    """The last line of what a job said, for people."""
    if one is None:
        return "lost"
    whole = server.call("GET", f"/jobs/{one['id']}")
    text = ((whole["result"] or {}).get("stderr") or (whole["error"] or {}).get("message") or "").strip()
    return text.splitlines()[-1][:100] if text else ""


def key_of(options):
    if options.key:
        return options.key
    for folder in (pathlib.Path.cwd(), HERE.parent.parent):
        file = folder / ".hothouse" / "admin.key"
        if file.is_file():
            return file.read_text(encoding="utf-8").strip()
    raise Refused("no key: give --key, set HOTHOUSE_API_KEY, or run `make up` in this folder first")


def options_of(arguments):
    parser = argparse.ArgumentParser(description="Run the 164 problems of HumanEval on Hothouse.")
    parser.add_argument("--server", default=os.environ.get("HOTHOUSE_SERVER", "http://127.0.0.1:8080"),
                        help="address of the API; HOTHOUSE_SERVER, else http://127.0.0.1:8080")
    parser.add_argument("--key", default=os.environ.get("HOTHOUSE_API_KEY"),
                        help="API key; HOTHOUSE_API_KEY, else .hothouse/admin.key")
    parser.add_argument("--wrong", action="store_true", help="replace every solution's body by a wrong one")
    parser.add_argument("--first", type=int, default=None, metavar="N", help="only the first N problems")
    parser.add_argument("--queue", default="default", help="the queue (default: default)")
    parser.add_argument("--timeout", default=None, help="limit of one job (default: 20s, with --wrong 5s)")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="limit of the whole run (default: 600)")
    parser.add_argument("--patience", type=float, default=60, metavar="SECONDS",
                        help="how long to ask a server again that is away (default: 60)")
    parser.add_argument("--all", action="store_true", help="print every job, not only the unexpected ones")
    options = parser.parse_args(arguments)
    if options.first is not None and options.first < 1:
        parser.error("--first is at least 1")
    options.timeout = options.timeout or ("5s" if options.wrong else "20s")
    return options


def main(arguments):
    options = options_of(arguments)
    tasks = problems()[: options.first]
    run = str(uuid.uuid4())
    try:
        server = Server(options.server, key_of(options), options.patience)
        begun = time.monotonic()
        submit(server, run, tasks, options)
        found = wait(server, run, len(tasks), options)
        return 0 if report(server, found, tasks, time.monotonic() - begun, options) else 1
    except Refused as refused:
        print(f"humaneval: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nhumaneval: stopped; the jobs go on, and GET /api/v1/jobs?metadata.run={run} lists them", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
