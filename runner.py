#!/usr/bin/env python3
"""The command line of ddfbench, and the loop that measures."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from reports import FAILURES, Json, Record, Run
from suites import Suite, suites
from suites.core.cases import Selection, UsageError, groups
from suites.core.options import (
    add_device,
    add_executor,
    add_selection,
    device_of,
    names,
    one_of,
    selection_of,
    with_executor,
)

if TYPE_CHECKING:
    from reports.core.records import RunDirectory
    from reports.core.verdict_options import Asked
    from reports.core.verdicts import Comparison

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent
RUNS = Path("runs")

OK, REGRESSION, USAGE, AMBIGUOUS, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130
#: As a shell tells of a program that wrote to a closed pipe.
CLOSED = 141

EPILOG = """\
further commands, each with its own --help:
  runner.py list ops|impls|suites|cases|claims  what there is
  runner.py report RUN [RUN ...]            render records again, several runs side by side
  runner.py compare BASE NEW                a verdict for each metric of each case of two runs, and an exit code
  runner.py ab [REV [REV]]                  two revisions of ops/ and csrc/, measured in one run
  runner.py history add|show|rebuild        runs over commits: a metric of each case, and where it moved
  runner.py calibrate                       what this machine can detect
  runner.py doctor                          whether this machine is fit to measure

exit codes: 0 all measured; 2 usage error; 4 a case failed, crashed, timed out, ran out of memory or is missing
"""

AB_EPILOG = """\
Cases whose program differs are measured, and one that does not, as a placebo; --op and --case name others. The run ends
when every case is decided; --processes N measures exactly N pairs of processes.

"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = COMMANDS.get(arguments[0] if arguments else "")
    from reports.core.records import RunError
    from suites.core.processes import ServerLost

    try:
        code = command(arguments[1:]) if command else run_command(arguments)
        sys.stdout.flush()
        return code
    except (UsageError, RunError) as error:
        print(f"runner.py: error: {error}", file=sys.stderr)
        return USAGE
    except (ServerLost, RunStopped) as error:
        print(f"runner.py: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("runner.py: interrupted; what was recorded is kept, --resume RUN goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output, `head` perhaps, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED


class RunStopped(Exception):
    """A run cannot go on; what was recorded is intact."""


# The command line


def run_parser() -> Parser:
    from reports.core.records import INDEX

    parser = Parser(
        prog="runner.py",
        description="Measures content-adaptive convolution. Without arguments: preset quick, default suites.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_selection(parser)
    add_executor(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", metavar="DIR", help="put the run there (a new or empty folder) instead of runs/<id>"
    )
    output.add_argument(
        "--track",
        metavar="INDEX",
        nargs="?",
        const=str(RUNS / INDEX),
        help=f"add the run to the history ({RUNS / INDEX})",
    )
    output.add_argument("--resume", metavar="RUN", help="go on with a run that was cut off; no other option beside it")
    output.add_argument(
        "--dry-run", action="store_true", help="list the cases with a forecast of the time, measure nothing"
    )
    return parser


# The loop


def run_command(arguments: Sequence[str]) -> int:
    """Measures, and renders what was measured."""
    options = run_parser().parse_args(arguments)
    if options.resume is not None:
        if len(arguments) > 2:
            raise UsageError(f"--resume: {options.resume!r} goes on with its own arguments; no other option beside it")
        return resume(Path(options.resume))
    selection = with_executor(selection_of(options), options)
    if options.dry_run:
        return dry_run(selection)
    return measure(selection, new_run(options.output), list(arguments), track=options.track)


def ab_parser() -> Parser:
    from reports.core import verdict_options

    parser = Parser(
        prog="runner.py ab",
        description="Measures two revisions of ops/ and csrc/ in one run, with this checkout's harness: REV against "
        "the working tree, or two revisions. Without REV: where this branch left main, against the working tree.",
        epilog=AB_EPILOG + verdict_options.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("rev", nargs="*", metavar="REV", help="anything git takes for a commit; . is the working tree")
    add_selection(parser)
    verdict_options.add_options(parser, "the run's folder instead of runs/<id>")
    parser.add_argument(
        "--case", type=names, action="extend", metavar="IDS", help="case ids, parts or patterns of them"
    )
    parser.add_argument("--limit", metavar="S", help="begin no pair of processes after so many seconds")
    parser.add_argument(
        "--confirm", action="store_true", help="measure what is slower a second time: only what is so again counts"
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what would be measured and how long it takes")
    return parser


def calibrate_parser() -> Parser:
    from reports.core import verdict_options
    from suites.core import calibrate

    parser = Parser(
        prog="runner.py calibrate",
        description="Compares this checkout's operators with themselves, as they are and slowed by real delays, and "
        "prints how often that was seen; trials add up over invocations, and verdicts quote them.",
        allow_abbrev=False,
    )
    add_selection(parser)
    parser.add_argument("--trials", metavar="N", help="of each delay and of separate runs (1)")
    parser.add_argument(
        "--delay",
        metavar="LIST",
        default=calibrate.DELAYS,
        help=f"percent by which calls are slowed ({calibrate.DELAYS})",
    )
    parser.add_argument("--kind", type=names, action="extend", metavar="NAMES", help="ab, compare (both)")
    parser.add_argument("--limit", metavar="S", help=f"seconds of one trial of ab, at most ({calibrate.LIMIT:g})")
    parser.add_argument("--ledger", metavar="FILE", help="where trials are kept (runs/calibration.jsonl)")
    verdict_options.add_options(parser)
    return parser


def new_run(output: str | None) -> Path:
    if output is not None:
        path = Path(output)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"--output: {output!r} is not a new or empty folder")
        return path
    return RUNS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def resume(path: Path) -> int:
    from reports.core.records import read_environment

    environment = read_environment(path)
    if "ab" in environment:
        raise UsageError(f"--resume: {str(path)!r} compares two revisions, whose blocks alternate: measure it anew")
    selection, arguments = Selection(**environment["selection"]), environment["argv"][1:]
    return measure(selection, path, arguments, resumed=True, track=environment.get("track"))


def measure(
    selection: Selection, path: Path, arguments: list[str], resumed: bool = False, track: str | None = None
) -> int:
    """The loop: plan, then group by group, each record written as soon as there is one.

    Args:
        track: the index that the run is added to.
    """
    from reports.core import models
    from reports.core.progress import Progress
    from reports.core.records import point_latest
    from suites.core.environment import describe_run
    from suites.core.executors import Work, executor

    tracked(track)  # now, since an index that cannot be written is to cost no run
    chosen = {name: suite for name, suite in suites().items() if name in selection.suites}
    with executor(selection, chosen) as where:
        plans = where.plan(tell_step)
        left_open = False
        if resumed:
            begun = models.reopen(path)
            directories = still_there(begun, plans)
            left_open = any("finished" not in begun[model].environment for model in begun.keys() - directories.keys())
        else:
            head = describe_run(path.name, arguments, selection, ROOT, VERSION) | ({"track": track} if track else {})
            directories = models.create(path, head, {model: where.environment(model) for model in plans})
        if path.parent == RUNS:
            point_latest(RUNS, path)
        where.keep_files(path)
        for model, directory in directories.items():
            directory.update_nodes(where.nodes(model))
        done = {model: directory.recorded() for model, directory in directories.items()}
        todo = {model: [case for case in plans[model].cases if case.id not in ids] for model, ids in done.items()}
        runs = {model: str(directory.environment["run"]) for model, directory in directories.items()}
        untimed = [name for name, suite in chosen.items() if not suite.timed]
        work = {model: Work(runs[model], groups(cases, untimed)) for model, cases in todo.items()}
        broken = [
            (model, [(record, 0.0)])
            for model, run in runs.items()
            for record in plans[model].broken_records(run)
            if record.case not in done[model]
        ]
        forecast = sum(plans[model].total_forecast(cases) / where.devices(model) for model, cases in todo.items())
        with Progress(sum(map(len, todo.values())), forecast) as progress:
            for model, batch in chain(broken, where.measure(work, progress.following)):
                for record, _ in batch:
                    keep(directories[model], record)
                progress.done([(record, seconds / where.devices(model)) for record, seconds in batch])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for model, directory in directories.items():
            directory.update_nodes(where.nodes(model))
            directory.update_environment({**directory.environment, "finished": now})
    code = tell(path)
    tracked(track, path)
    return FAILED if left_open else code


def still_there(directories: dict[str, RunDirectory], plans: Collection[str]) -> dict[str, RunDirectory]:
    """The runs that can go on: of the models of devices that there are.

    Raises:
        UsageError: if there is none.
    """
    for model in directories:
        if model not in plans:
            tell_step(f"{model}: there is no such device now, what is open of it stays open")
    found = {model: directory for model, directory in directories.items() if model in plans}
    if not found:
        raise UsageError(f"--resume: none of its devices is there: {', '.join(directories)}; but {', '.join(plans)}")
    return found


def tracked(index: str | None, run: Path | None = None) -> None:
    """Opens the index that a run is to be added to, made where there is none; adds the run, if it is there."""
    if index is None:
        return
    from reports.core import models
    from reports.core.history_index import Index

    with Index.open(Path(index), create=True) as opened:
        if run is not None:
            for part in models.load(run, samples=False):
                opened.add(part.path)
            print(f"added to {index}")


def tell_step(line: str) -> None:
    """A line about what is being done, beside the results."""
    print(line, file=sys.stderr, flush=True)


def keep(directory: RunDirectory, record: Record) -> None:
    """Writes a record.

    Raises:
        RunStopped: if it cannot be written, because the disk is full, say.
    """
    from reports.core.records import RunError

    try:
        directory.append(record)
    except RunError as error:
        raise RunStopped(f"{error}; what was recorded is intact, --resume {directory.path} goes on") from None


def tell(path: Path) -> int:
    """Renders a finished run, several models of devices side by side too; prints the answer, returns the exit code."""
    from reports.core import models
    from reports.core.summary import terminal_summary

    runs = models.load(path)
    for run in runs:
        write([run], run.path, None)
        print(*([f"{run.environment['model']}:"] if len(runs) > 1 else []), terminal_summary(run), sep="\n")
    if len(runs) > 1:
        write(runs, path, None)
    print(f"report: {path / 'report.html'}, {path / 'report.md'}")
    return FAILED if any(record.status in FAILURES for run in runs for record in run.records) else OK


def write(runs: list[Run], target: Path, wanted: list[str] | None, style: str = "screen") -> None:
    """Renders runs into a folder, in the formats wanted (the usual ones if None), the plots in a style."""
    from reports import formats, usual_formats
    from reports.core.render import render

    known = formats()
    named = wanted if wanted is not None else list(usual_formats())
    chosen = {name: known[one_of("--format", name, list(known))] for name in named}
    if style == "paper" and "plots" in chosen:
        from reports.plots import PAPER

        chosen = {**chosen, "plots": PAPER}
    render(runs, target, chosen.values())


def dry_run(selection: Selection) -> int:
    """Prints the cases and what they are forecast to take."""
    from reports.core.progress import duration
    from suites.core.executors import executor

    chosen: dict[str, Suite] = {name: suite for name, suite in suites().items() if name in selection.suites}
    with executor(selection, chosen) as where:
        plans, devices = where.plan(None), where.devices
    for model, plan in plans.items():
        for case in plan.cases:
            settled = plan.settled(case, "")
            print(f"{case.id}  {f'{settled.status}: {settled.reason}' if settled else f'{plan.forecast(case):.1f} s'}")
        seconds, count = plan.total_forecast(plan.cases), devices(model)
        of = (
            f"{model} ({count} device{'s' if count > 1 else ''}, {duration(seconds)} of device time): " if model else ""
        )
        print(f"{of}{len(plan.cases)} cases, forecast {duration(seconds / count)}")
    return OK


# Further commands


def list_command(arguments: Sequence[str]) -> int:
    """Prints what there is."""
    parser = Parser(prog="runner.py list", description="Prints what there is.", allow_abbrev=False)
    parser.add_argument("what", choices=("ops", "impls", "suites", "cases", "claims"))
    add_selection(parser)
    options = parser.parse_args(arguments)
    if options.what == "suites":
        for suite in suites().values():
            print(f"{suite.name:12} {'' if suite.default else '(on request) '}{suite.help}")
        return OK
    if options.what == "claims":
        return list_claims()
    selection = selection_of(options)
    from suites.core.plan import declare, make_plan
    from suites.core.session import Session

    chosen = {name: suite for name, suite in suites().items() if name in selection.suites}
    with Session(chosen.values()) as session:
        if options.what == "cases":
            for case in make_plan(selection, chosen, session.start()).cases:
                print(case.id)
            return OK
        declared, broken = declare(session.start(), selection.op_files)
    for op in declared.values():
        if options.what == "ops":
            print(f"{op.name:12} {op.title:12} impls: {', '.join(op.impls)}")
        else:
            for impl in op.impls:
                print(f"{op.name:12} {impl}{'  (slow first call)' if impl in op.slow_impls else ''}")
                for kernel in op.kernels.get(impl, ()):
                    print(f"{'':14} {kernel}")
    for failure in broken:
        print(f"{failure.file}: {failure.status}: {failure.reason}", file=sys.stderr)
    return FAILED if broken else OK


def list_claims() -> int:
    """Prints every published claim and the command that tests it."""
    from reports.core.claims.poster import claims

    for claim in claims():
        print(f"{claim.id:36} {claim.source:20} {claim.statement}  {claim.command or '(cited, never measured)'}")
    return OK


def report_command(arguments: Sequence[str]) -> int:
    """Renders runs again, from their records."""
    from reports.core import models
    from reports.core.records import load_run

    parser = Parser(prog="runner.py report", description="Renders runs from their records.", allow_abbrev=False)
    parser.add_argument("run", nargs="+", help="folders of runs; several are shown side by side")
    parser.add_argument("--format", type=names, action="extend", metavar="NAMES", help="formats (those of a run)")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: into the run; needed for several)")
    parser.add_argument("--style", choices=("screen", "paper"), default="screen", help="of plots: paper is one column")
    parser.add_argument("--publish", metavar="DIR", help="write a static site of the runs there, and nothing else")
    parser.add_argument("--bundle", metavar="FILE", help="write a reproduction package (.zip), and nothing else")
    options = parser.parse_args(arguments)
    if options.publish is not None or options.bundle is not None:
        return hand_on(options)
    if len(options.run) > 1 and options.output is None:
        raise UsageError("--output: a folder is needed for the report of several runs")
    samples = options.format is None or "html" in options.format
    runs = [run for path in options.run for run in models.load(Path(path), samples)]
    target = Path(options.output or options.run[0])
    compared = [run for run in runs if "ab" in run.environment]
    if compared and len(runs) > 1:
        raise UsageError(f"RUN: {str(compared[0].path)!r} compares two revisions, and is reported alone")
    if compared:
        report_comparison(load_run(runs[0].path), target)
    else:
        write(runs, target, options.format, options.style)
    print(f"written to {target}{os.sep}")
    return OK


def hand_on(options: argparse.Namespace) -> int:
    """Writes runs as a site or as an archive, to be given to others."""
    from reports.core.publish import bundle, publish
    from reports.core.records import load_run

    for option, value in (("--output", options.output), ("--format", options.format)):
        if value is not None:
            raise UsageError(f"{option}: {value!r} means nothing beside --publish and --bundle")
    runs = [load_run(Path(run)) for run in options.run]
    compared = [run for run in runs if "ab" in run.environment]
    if compared:
        raise UsageError(f"RUN: {str(compared[0].path)!r} compares two revisions; its folder has comparison.html")
    for action, target in ((publish, options.publish), (bundle, options.bundle)):
        if target is not None:
            action(runs, Path(target))
            print(f"written to {target}")
    return OK


def ab_command(arguments: Sequence[str]) -> int:
    """Measures two revisions in one run, and says which cases differ."""
    from reports.core import pairs as judging
    from reports.core import verdict_options
    from reports.core.progress import Progress
    from reports.core.records import RunDirectory, load_run
    from suites.core import ab, revisions
    from suites.core.environment import describe
    from suites.core.session import Session

    options = ab_parser().parse_args(arguments)
    request = ab.Request.of(options, selection_of(options))
    path = new_run(options.output)
    names = request.revisions or [revisions.default_base(ROOT), revisions.WORKING_TREE]
    staged = [revisions.stage(ROOT, name, ROOT / ".build" / "revisions") for name in names]
    began = time.monotonic()
    with Session(request.suites.values()) as session:
        sides = ab.plan_sides(staged, request, session)
        matched = ab.match(*sides, request.wanted)
        tell_step(ab.announcement(sides, matched, request.looks))
        if options.dry_run or not matched.measured:
            return OK
        ab.build_sides(sides, matched.measured, session, tell_step)
        environment = describe(path.name, ["ab", *arguments], sides[1].plan, ROOT, VERSION)
        directory = RunDirectory.create(path, {**environment, "ab": ab.told(sides, matched, request)})
        session.log = path / "workers.log"
        pairs = ab.Pairs(request.selection, session, sides, path.name, began, request.asked.metrics)

        def compared(chosen: ab.Matched, first: int) -> Comparison:
            most, forecast = request.looks[-1], ab.pair_forecast(sides, chosen.measured)
            with Progress(2 * len(chosen.measured) * most, most * forecast) as progress:

                def kept(made: list[Record], seconds: float) -> None:
                    for record in made:
                        keep(directory, record)
                    progress.done([(record, seconds / len(made)) for record in made])

                return ab.compare_sides(pairs, chosen, request, kept, first)

        comparison = compared(matched, 0)
        again = judging.flagged(comparison) if options.confirm else []
        if again:
            tell_step(f"{len(again)} cases are slower and are measured again")
            compared(replace(matched, measured=list(dict.fromkeys([*again, *matched.placebos]))), judging.CONFIRMING)
            comparison = judging.judge(load_run(path))
    comparison.notes += calibrated("ab", sides[1].plan.device, matched.threads)
    return verdict_options.conclude(comparison, request.asked.into(path))


def report_comparison(run: Run, target: Path) -> None:
    """Judges what `ab` has measured once more, and writes it."""
    from reports.core import pairs, verdict_tables

    verdict_tables.write(pairs.judge(run), verdict_tables.FORMATS, target)


def compare_command(arguments: Sequence[str]) -> int:
    """Holds one run against another, or against baselines; or the two sides of a run of `ab`."""
    from reports.core import baselines, pairs, verdict_options
    from reports.core.compare import compare
    from reports.core.records import load_run

    parser = Parser(
        prog="runner.py compare",
        description="Holds the run NEW against the run BASE: a verdict for each metric of each case.",
        epilog=verdict_options.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("base", metavar="BASE", help="folder of a run, or of baselines (reports/baselines)")
    parser.add_argument(
        "new",
        metavar="NEW",
        nargs="?",
        help="folder of a run, best with 7 processes or more; none if BASE is a run of ab",
    )
    parser.add_argument("--update", action="store_true", help="make NEW the baseline of its compiler in BASE")
    verdict_options.add_options(parser)
    options = parser.parse_args(arguments)
    asked = verdict_options.asked(options)
    if options.update or baselines.is_folder(Path(options.base)):
        if options.new is None:
            raise UsageError(f"NEW: a run is needed beside the baselines {options.base!r}")
        return compare_with_baseline(Path(options.base), load_run(Path(options.new)), options.update, asked)
    base = load_run(Path(options.base))
    if options.new is None:
        if "ab" not in base.environment:
            raise UsageError(f"NEW: {options.base!r} is no run of ab, and needs a run that it is held against")
        return verdict_options.conclude(pairs.judge(base), asked)
    new = load_run(Path(options.new))
    threads = next((record.axes["threads"] for record in new.records if "threads" in record.axes), None)
    notes = calibrated("compare", new.environment.get("device") or {}, threads)
    return verdict_options.conclude(compare(base, new, asked.floor, asked.level, asked.metrics, notes), asked)


def history_command(arguments: Sequence[str]) -> int:
    """Runs over commits."""
    from reports.core import history_command

    parser = Parser(
        prog="runner.py history",
        description="Runs over commits, by an index that is made from them.",
        allow_abbrev=False,
    )
    history_command.add_options(parser)
    return OK if history_command.carry_out(parser.parse_args(arguments)) else FAILED


def compare_with_baseline(folder: Path, new: Run, update: bool, asked: Asked) -> int:
    """Holds a run against the baselines of its compilers, or makes it theirs."""
    from reports.core import baselines, verdict_options

    if update:
        for file in baselines.update(folder, new):
            print(f"written: {file}")
        return OK
    return verdict_options.conclude(baselines.against(folder, new, asked.level, asked.floor, asked.metrics), asked)


def calibrated(kind: str, device: Json, threads: object) -> list[str]:
    """What `calibrate` has found on such a device, to be told under a verdict."""
    from reports.core import calibration
    from reports.core.records import RunError

    try:
        trials = calibration.load(RUNS / calibration.LEDGER)
    except RunError as error:
        return [f"What this machine can detect is not known: {error}"]
    return calibration.quoted(calibration.on_device(trials, str(device.get("name")), threads), kind)


def calibrate_command(arguments: Sequence[str]) -> int:
    """Measures what this machine can detect, and adds it to the ledger."""
    from reports.core import calibration
    from suites.core import calibrate, machine, revisions

    options = calibrate_parser().parse_args(arguments)
    request = calibrate.Request.of(options, selection_of(options))
    ledger = Path(options.ledger) if options.ledger else RUNS / calibration.LEDGER
    known = calibration.load(ledger)
    here = revisions.stage(ROOT, revisions.WORKING_TREE, ROOT / ".build" / "revisions")
    taking = calibrate.Calibration(request, here.tree, machine.describe_project(ROOT)["revision"], tell_step)
    schedule = request.schedule()
    for count, (kind, delay) in enumerate(schedule, 1):
        trial = taking.trial(kind, delay)
        calibration.append(ledger, trial)
        known.append(trial)
        tell_step(f"[{count}/{len(schedule)}] {calibration.outcome(trial)}")
    print(calibration.table(calibration.on_device(known, trial.device, trial.threads)))
    print(f"ledger: {ledger}")
    return OK


def doctor_command(arguments: Sequence[str]) -> int:
    """Tells whether this machine is fit to measure."""
    from suites.core import doctor
    from suites.core.findings import PROBLEM, WARNING

    parser = Parser(
        prog="runner.py doctor",
        description="Tells whether this machine is fit to measure: what was found, what it means, what to do.",
        epilog=doctor.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_device(parser)
    parser.add_argument("--format", choices=doctor.FORMATS, default="text", help="text (default), or json for programs")
    parser.add_argument("--strict", action="store_true", help="exit 3 where there are warnings")
    options = parser.parse_args(arguments)
    findings = doctor.examine(device_of(options), say=tell_step)
    print(doctor.FORMATS[options.format](findings))
    if doctor.count(findings, PROBLEM):
        return FAILED
    return AMBIGUOUS if options.strict and doctor.count(findings, WARNING) else OK


COMMANDS = {
    "list": list_command,
    "report": report_command,
    "compare": compare_command,
    "ab": ab_command,
    "calibrate": calibrate_command,
    "doctor": doctor_command,
    "history": history_command,
}

if __name__ == "__main__":
    sys.exit(main())
