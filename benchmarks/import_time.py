"""Measures what prunekit adds to the time to import torch, and what loading all plugins takes.

``python benchmarks/import_time.py`` starts fresh interpreters and prints the median and the best of several runs, in
milliseconds by the clock, and of the processor, which other programs on the machine change less. What is measured:
importing ``prunekit`` and what ``prune`` is made of after torch; making the first registry, which imports the other
plugins; making another one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

PROGRAM = """
import json, time
def clock(action):
    start, used = time.perf_counter(), time.process_time()
    result = action()
    return result, [1000 * (time.perf_counter() - start), 1000 * (time.process_time() - used)]
times = {}
_, times["torch"] = clock(lambda: __import__("torch"))
pk, times["prunekit, beyond torch"] = clock(lambda: __import__("prunekit"))
_, times["what prune is made of"] = clock(lambda: pk.prune)
_, times["first registry"] = clock(pk.Registry)
_, times["second registry"] = clock(pk.Registry)
print(json.dumps(times))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="Number of interpreters started; the first doesn't count.")
    runs = parser.parse_args().runs
    found = [
        json.loads(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout)
        for _ in range(runs + 1)
    ][1:]
    for name in found[0]:
        clock, used = zip(*(run[name] for run in found), strict=True)
        print(
            f"{name:30} clock: median {statistics.median(clock):8.1f} ms, best {min(clock):8.1f} ms   "
            f"processor: median {statistics.median(used):8.1f} ms, best {min(used):8.1f} ms"
        )


if __name__ == "__main__":
    main()
