"""Every figure in the docs: `python -m benchmarks`, or some of them: `python -m benchmarks scores training`.

Each `bench_NAME.py` beside this file has `rows() -> Iterable[Row]`. Each runs in a process of its own, so that
threads, caches and memory of one do not colour the next. `--json FILE` keeps the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    names = sorted(file.stem.removeprefix("bench_") for file in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(names)} (default: all)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    rows: list[dict[str, object]] = []
    for name in given.names or names:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            code = f"from benchmarks.__main__ import run; run({name!r}, {file.name!r})"
            subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, check=True)
            rows += json.loads(Path(file.name).read_text())
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    short = [row for row in rows if not row["reached"]]
    print(f"{len(rows) - len(short)} of {len(rows)} targets reached")
    return 1 if short else 0


def run(name: str, out: str) -> None:
    rows = []
    print(f"## {name}\n| work | against | ratio | target | |\n|---|---|---|---|---|", flush=True)
    for row in importlib.import_module(f"benchmarks.bench_{name}").rows():
        mark = "" if row.reached else " **short**"
        print(
            f"| {row.work} | {row.against} | {row.ratio:.2f}x{mark} | {row.target:g}x | {row.detail} |",
            flush=True,
        )
        rows.append({**dataclasses.asdict(row), "reached": row.reached})
    print()
    Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    sys.exit(main())
