"""Writes and judges many programs: ``python -m tests.programs.grammar --count 10000 --seed 0 --jobs 2``."""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path

from tests.programs.grammar.judge import GOOD, Outcome
from tests.programs.grammar.shrinking import shrink
from tests.programs.grammar.trials import Trial, trials, verdict_of
from tests.programs.grammar.writing import write


def table(found: list[Trial]) -> str:
    """Counts outcomes, as Markdown."""
    counts = collections.Counter(result.verdict.outcome for result in found)
    compared = sum(result.verdict.compared for result in found)
    lines = ["| outcome | programs |", "|---|---|"]
    lines += [f"| {outcome.value} | {counts[outcome]:,} |" for outcome in Outcome if outcome in GOOD or counts[outcome]]
    wrong = sum(count for outcome, count in counts.items() if outcome not in GOOD)
    lines += [f"| **disagreements** | **{wrong:,}** |", f"| all | {len(found):,} |"]
    seconds = sum(result.seconds for result in found)
    lines.append("")
    lines.append(
        f"{compared:,} cuts were compared with the masked original; {1000 * seconds / len(found):.0f} ms each."
    )
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first program's; the others follow")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder for the programs that disagree")
    parser.add_argument("--log", type=Path, help="a file to which every verdict is appended, as a line of JSON")
    parser.add_argument("--show", action="store_true", help="print the first program and its verdict")
    parser.add_argument("--reached", action="store_true", help="list the op rules that were and weren't met")
    parser.add_argument("--shrink", action="store_true", help="make programs that disagree small")
    arguments = parser.parse_args()
    if arguments.show:
        program = write(arguments.seed)
        print(program.source(), "\n", verdict_of(program), sep="")
        return 0
    found = []
    for result in trials(range(arguments.seed, arguments.seed + arguments.count), arguments.jobs):
        found.append(result)
        if arguments.log:
            with arguments.log.open("a") as log:
                log.write(json.dumps(line(result)) + "\n")
        if result.verdict.disagrees:
            print(f"{result.seed}: {str(result.verdict)[:300]}", flush=True)
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                program = write(result.seed)
                program = shrink(program, result.verdict.outcome) if arguments.shrink else program
                (arguments.out / f"program_{result.seed}.py").write_text(
                    program.file(str(result.verdict)[:300].replace('"', "'"))
                )
    print(table(found))
    if arguments.reached:
        report(found)
    return int(any(result.verdict.disagrees for result in found))


def line(result: Trial) -> dict[str, object]:
    """What the log says of a trial."""
    verdict = result.verdict
    said = {"outcome": verdict.outcome.value, "detail": verdict.detail[:400], "compared": verdict.compared}
    return {"seed": result.seed, **said, "keys": sorted(verdict.keys), "seconds": round(result.seconds, 3)}


def report(found: list[Trial]) -> None:
    """Says which rules and productions were met, and how often."""
    from prunekit_plugins.ops import prunekit_op_rules

    keys = collections.Counter(key for result in found for key in result.verdict.keys)
    rules = [str(key) for key in prunekit_op_rules()]
    print("met:", ", ".join(f"{key} {count}" for key, count in keys.most_common()))
    print("never met:", ", ".join(key for key in rules if key not in keys))
    print("no rule:", collections.Counter(name for result in found for name in result.verdict.missing))
    print("productions:", collections.Counter(name for result in found for name in result.made_by))
    print("refused:")
    for reason, count in collections.Counter(
        result.verdict.detail[:160] for result in found if result.verdict.outcome in (Outcome.REFUSED, Outcome.UNFIT)
    ).most_common(12):
        print("  ", count, reason.replace("\n", " "))


if __name__ == "__main__":
    raise SystemExit(main())
